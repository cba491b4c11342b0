"""The causal test of LREs on a model where it must succeed, and where it cannot."""

import numpy as np
import pytest
import torch
from conftest import make_hf_model
from linear_model import ATTENDING, make_linear_model

from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.attribute_editing import draw_pairs, measure_editing
from patchscopes.learned.low_rank import invert_low_rank
from patchscopes.learned.lre import build_lre_prompt, find_subject_position, fit_lre
from patchscopes.model.loading import load_model
from patchscopes.patch import patch_logits

LAYERS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def linear(models_by_tokenizer):
    return make_linear_model(models_by_tokenizer["byte_level"].tokenizer)


@pytest.fixture(scope="module")
def lre(linear):
    return fit_lre(linear.model, linear.relation, linear.relation.samples[:4], LAYERS)


def test_a_full_rank_edit_gives_the_others_logits(linear, lre):
    model, relation, _ = linear
    samples = relation.samples
    prompts = [build_lre_prompt(relation, samples[:4], sample.subject) for sample in samples[4:6]]
    position = find_subject_position(model, relation, prompts[0])
    own, other = extract_representations(model, prompts, [-1, -1], [3])[:, 0]
    subject = extract_representations(model, prompts[:1], [position], LAYERS)[0]
    changes = invert_low_rank(lre.weights)(other - own, [32])[:, 0]
    logits = patch_logits(TargetPrompt(model, prompts[0], position), subject + changes, LAYERS)
    of_own, of_other = (model(prompt)[0, -1] for prompt in prompts)
    for layer in LAYERS:
        expected = of_other if layer < ATTENDING else of_own
        torch.testing.assert_close(logits[layer], expected, atol=1e-3, rtol=0)


def test_measures(linear, lre):
    """Below the block that reads the subject every edit of enough dimensions succeeds, above it none."""
    model, relation, _ = linear
    measured = measure_editing(model, lre, relation, relation.samples[:4], relation.samples[4:], [1, 16, 32], seed=0)
    assert (measured["layers"], measured["ranks"], measured["n_subjects"]) == (LAYERS, [1, 16, 32], 4)
    for measure in ("answers", "efficacy"):
        mean = np.array(measured[measure]["mean"])
        assert mean.shape == (4, 3)
        assert np.array(measured[measure]["ci95"]).shape == (4, 3, 2)
        assert (mean[:ATTENDING, 1:] == 1).all()
        assert (mean[ATTENDING:] == 0).all()
        assert (mean[:ATTENDING, 0] < 1).all()


def test_pairs(linear):
    model, relation, _ = linear
    samples = [*relation.samples, relation.samples[0]]
    pairs = draw_pairs(model, samples, seed=3)
    assert [own for own, _ in pairs] == list(range(9))
    for own, other in pairs:
        assert samples[own].object != samples[other].object
    assert pairs == draw_pairs(model, samples, seed=3) != draw_pairs(model, samples, seed=4)
    assert draw_pairs(model, [samples[0], samples[8]], seed=0) == []


def test_mistakes(linear, lre, models_by_tokenizer):
    model, relation, _ = linear
    samples = relation.samples
    with pytest.raises(PatchscopesError, match="no two of the 1 tested samples of 'made up'"):
        measure_editing(model, lre, relation, samples[:4], samples[4:5], [1], seed=0)
    with pytest.raises(PatchscopesError, match="a rank must be from 1 to 32"):
        measure_editing(model, lre, relation, samples[:4], samples[4:], [40], seed=0)
    other = load_model(hf_model=make_hf_model("llama"), tokenizer=models_by_tokenizer["byte_level"].tokenizer)
    with pytest.raises(PatchscopesError, match="and the weights"):
        measure_editing(other, lre, relation, samples[:4], samples[4:], [1], seed=0)
