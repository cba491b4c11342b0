"""Probes: what they can know of a sample that they are tested on, and that the fast way gives the obvious result."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from patchscopes.errors import PatchscopesError
from patchscopes.learned import probes
from patchscopes.learned.probes import cross_validate_probe, train_probes

KINDS_OF_FOLDS = ("subject", "sample")


def make_samples(n_subjects=24, n_prompts=3, n_objects=3, n_layers=2, d_model=8, noise=1.0, seed=0):
    """States around one centre per object, with noise of the subject and of the prompt; objects; subjects."""
    rng = np.random.default_rng(seed)
    of_subject = rng.permutation(np.arange(n_subjects) % n_objects)
    centres = rng.normal(size=(n_objects, n_layers, d_model))
    own = centres[of_subject] + noise * rng.normal(size=(n_subjects, n_layers, d_model))
    states = np.repeat(own, n_prompts, axis=0)
    states += 0.5 * noise * rng.normal(size=states.shape)
    # Dimensions of very different size and place, as in a model.
    states = states * np.geomspace(0.01, 100, d_model) + 10 * rng.normal(size=d_model)
    subjects = [f"subject {number}" for number in range(n_subjects) for _ in range(n_prompts)]
    return states, [f"object {of_subject[row // n_prompts]}" for row in range(len(states))], subjects


def code_subjects(subjects):
    """States that tell the subject and nothing else, of one layer."""
    return np.eye(len(set(subjects)))[np.unique(subjects, return_inverse=True)[1]][:, None]


@pytest.mark.parametrize("folds_by", KINDS_OF_FOLDS)
def test_separable_objects_are_named(folds_by):
    states, objects, subjects = make_samples(noise=0.02)
    assert cross_validate_probe(states, objects, subjects, folds_by=folds_by).all()


def test_states_that_only_tell_the_subject_are_read_by_recognising_it():
    _, objects, subjects = make_samples(n_subjects=20, n_prompts=5, n_objects=10)
    states = code_subjects(subjects)
    assert cross_validate_probe(states, objects, subjects, folds_by="sample").all()
    assert cross_validate_probe(states, objects, subjects).mean() <= 0.2


def test_an_object_of_one_subject_is_never_named_unless_the_subject_was_seen():
    states, _, subjects = make_samples(n_subjects=12, n_prompts=8)
    assert not cross_validate_probe(states, subjects, subjects).any()
    assert cross_validate_probe(code_subjects(subjects), subjects, subjects, folds_by="sample").all()


@pytest.mark.parametrize("folds_by", KINDS_OF_FOLDS)
def test_no_subject_stands_on_both_sides_of_any_fold(monkeypatch, folds_by):
    states, objects, subjects = make_samples(n_layers=1, n_prompts=5)
    states[:, 0, 0] = np.unique(subjects, return_inverse=True)[1]
    shared, tested = [], []
    train_and_test = probes._train_and_test

    def watch(states, classes, fits, test, strengths):
        shared.append(set(states[test, 0]) & set(states[~test, 0]))
        tested.append(test.sum())
        return train_and_test(states, classes, fits, test, strengths)

    monkeypatch.setattr(probes, "_train_and_test", watch)
    cross_validate_probe(states, objects, subjects, folds_by=folds_by)
    assert any(shared) == (folds_by == "sample")
    assert len(tested) == probes.N_FOLDS * (probes.N_INNER_FOLDS + 1)
    outer = tested[probes.N_INNER_FOLDS :: probes.N_INNER_FOLDS + 1]
    assert sum(outer) == len(states)
    assert sum(tested) == len(states) * probes.N_FOLDS


def test_shuffled_objects_are_named_by_chance():
    states, objects, subjects = make_samples(n_subjects=60, n_objects=4, noise=0.1)
    assert cross_validate_probe(states, objects, subjects).mean() > 0.9
    shuffled = np.repeat(np.random.default_rng(1).permutation(objects[::3]), 3).tolist()
    assert cross_validate_probe(states, shuffled, subjects).mean() == pytest.approx(0.25, abs=0.12)


@pytest.mark.parametrize("folds_by", KINDS_OF_FOLDS)
@pytest.mark.parametrize(("d_model", "n_objects"), [(8, 3), (80, 5), (80, 2)])
def test_the_probe_is_the_plain_pipeline_of_scikit_learn(d_model, n_objects, folds_by):
    """With more dimensions than samples and with fewer, from a cold start and with another solver."""
    states, objects, subjects = make_samples(n_layers=1, n_objects=n_objects, d_model=d_model, noise=2.0, seed=3)
    answers = np.array(objects)
    groups = np.unique(subjects, return_inverse=True)[1] if folds_by == "subject" else np.arange(len(states))

    def test_plainly(rows, test, strength):
        probe = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
        pipeline = make_pipeline(StandardScaler(), probe).fit(states[rows & ~test, 0], answers[rows & ~test])
        return pipeline.predict(states[rows & test, 0]) == answers[rows & test]

    everything = np.ones(len(states), dtype=bool)
    folds = probes._draw_folds(groups, probes.N_FOLDS, 0)
    expected = np.zeros(len(states), dtype=bool)
    for fold in range(probes.N_FOLDS):
        train = folds != fold
        inner = np.full(len(states), -1)
        inner[train] = probes._draw_folds(groups[train], probes.N_INNER_FOLDS, 0)
        n_right = [
            sum(test_plainly(train, inner == number, strength).sum() for number in range(probes.N_INNER_FOLDS))
            for strength in probes.STRENGTHS
        ]
        weakest = max(place for place, count in enumerate(n_right) if count == max(n_right))
        expected[~train] = test_plainly(everything, ~train, probes.STRENGTHS[weakest])

    found = cross_validate_probe(states, objects, subjects, folds_by=folds_by)[:, 0]
    assert 0.2 < expected.mean() < 1
    assert (found == expected).mean() > 0.98


@pytest.mark.parametrize(("d_model", "n_objects"), [(8, 3), (80, 5), (80, 2)])
def test_trained_probes_are_those_of_scikit_learn(d_model, n_objects):
    states, objects, subjects = make_samples(n_objects=n_objects, d_model=d_model, noise=2.0, seed=3)
    new, answers, _ = make_samples(n_objects=n_objects, d_model=d_model, noise=2.0, seed=3)
    trained = train_probes(states, objects, subjects)
    assert trained.objects == tuple(sorted(set(objects)))
    for layer in range(states.shape[1]):
        # One of the strengths is its own, and the probe is that of scikit-learn from a cold start.
        plain = [
            make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=10_000))
            .fit(states[:, layer], objects)
            .predict_proba(new[:, layer])
            for strength in probes.STRENGTHS
        ]
        found = trained(new[:, layer], [layer] * len(new))
        assert found.sum(axis=1) == pytest.approx(1)
        assert min(np.abs(found - one).max() for one in plain) < 1e-3
    assert np.mean(np.array(trained.objects)[found.argmax(axis=1)] == answers) > 0.8


def test_trained_probes_read_each_row_at_its_own_layer():
    states, objects, subjects = make_samples(noise=0.02)
    steps = []
    trained = train_probes(
        states, objects, subjects, progress=lambda layers: (steps.append(one) or one for one in layers)
    )
    assert steps == [0, 1]
    rows = trained(states[:6].reshape(12, -1), [0, 1] * 6)
    np.testing.assert_allclose(rows[::2], trained(states[:6, 0], [0] * 6))
    assert [trained.objects[place] for place in rows.argmax(axis=1)] == list(np.repeat(objects[:6], 2))
    alone = train_probes(states, ["same"] * len(objects), subjects)
    np.testing.assert_array_equal(alone(states[:3, 0], [0] * 3), np.ones((3, 1)))


def test_another_accepted_object_is_right_too():
    """Where the probe takes objects 0 and 1 for each other, it is right if both are accepted."""
    states, objects, subjects = make_samples(noise=0.02)
    exchanged = {"object 0": "object 1", "object 1": "object 0"}
    swapped = [exchanged.get(one, one) for one in objects]
    accepted = [{one, exchanged.get(one, one)} for one in objects]
    half = np.arange(len(objects)) % 6 < 3
    mixed = np.where(half, objects, swapped).tolist()
    assert cross_validate_probe(states, mixed, subjects).mean() < 0.8
    assert cross_validate_probe(states, mixed, subjects, accepted=accepted).all()


def test_folds_are_even_and_keep_groups_whole():
    groups = np.repeat([7, 3, 5, 1, 9, 4, 8], [1, 5, 2, 9, 1, 3, 4])
    folds = probes._draw_folds(groups, 3, seed=0)
    of_group = {group: set(folds[groups == group]) for group in set(groups)}
    assert all(len(of_one) == 1 for of_one in of_group.values())
    assert sorted(sum(fold in of_one for of_one in of_group.values()) for fold in range(3)) == [2, 2, 3]
    assert sorted(probes._draw_folds(np.arange(2), 5, seed=0)) == [0, 1]


def test_the_seed_decides_and_layers_do_not_know_each_other():
    states, objects, subjects = make_samples(n_subjects=12, n_prompts=4, noise=2.0)
    found = cross_validate_probe(states, objects, subjects)
    assert found.shape == (48, 2)
    np.testing.assert_array_equal(found, cross_validate_probe(states, objects, subjects))
    np.testing.assert_array_equal(found[:, 1:2], cross_validate_probe(states[:, 1:2], objects, subjects))
    assert (found != cross_validate_probe(states, objects, subjects, seed=1)).any()


@pytest.mark.parametrize("folds_by", KINDS_OF_FOLDS)
def test_dimensions_that_never_change_say_nothing(folds_by):
    states, objects, subjects = make_samples(noise=2.0)
    padded = np.concatenate([states, np.full_like(states, 1e4)], axis=-1)
    found = cross_validate_probe(padded, objects, subjects, folds_by=folds_by)
    np.testing.assert_array_equal(found, cross_validate_probe(states, objects, subjects, folds_by=folds_by))
    assert cross_validate_probe(np.ones_like(states), ["same"] * len(states), subjects, folds_by=folds_by).all()


def test_a_task_with_one_object_is_always_right():
    states, objects, subjects = make_samples()
    assert cross_validate_probe(states, ["same"] * len(objects), subjects).all()
    rare = ["same"] * len(objects)
    rare[:3] = ["other"] * 3
    found = cross_validate_probe(states, rare, subjects)
    assert not found[:3].any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("folds_by", KINDS_OF_FOLDS)
def test_a_few_samples_are_enough(folds_by):
    states = np.random.default_rng(0).normal(size=(4, 1, 6)).astype(np.float32)
    for objects, subjects in (("aabb", "1234"), ("aabb", "1122"), ("abab", "1122"), ("abcd", "1222")):
        found = cross_validate_probe(states, list(objects), list(subjects), folds_by=folds_by)
        assert found.shape == (4, 1)
        assert not any(found[row] for row in range(4) if objects.count(objects[row]) == 1)


def test_what_no_probe_can_learn_from_is_named():
    states, objects, subjects = make_samples()
    with pytest.raises(PatchscopesError, match="72 states, 71 objects and 72 subjects"):
        cross_validate_probe(states, objects[1:], subjects)
    with pytest.raises(PatchscopesError, match="some subjects .* there is 1; give at least two"):
        cross_validate_probe(states, objects, ["same"] * len(subjects))
    with pytest.raises(PatchscopesError, match="some subjects .* there is 1; give at least two"):
        train_probes(states, objects, ["same"] * len(subjects))
    with pytest.raises(PatchscopesError, match="some samples .* there is 0; give at least two"):
        cross_validate_probe(states[:0], [], [], folds_by="sample")
    states[5, 1, 2] = np.inf
    with pytest.raises(PatchscopesError, match=r"sample 5 \('subject 1'\) in place 1 .* not finite"):
        cross_validate_probe(states, objects, subjects)
