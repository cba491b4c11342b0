"""Probes: linear classifiers trained to read an attribute out of a state, the paper's baseline in section 4.2."""

import warnings
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from patchscopes.errors import PatchscopesError

FoldsBy = Literal["subject", "sample"]

N_FOLDS = 5
N_INNER_FOLDS = 3
# Inverse strengths of the penalty, scikit-learn's C, strongest first. On standardised states of 576 dimensions the
# first only says the most frequent object, and from 0.01 on the accuracy hardly changes.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def cross_validate_probe(
    states: Float[np.ndarray, "sample layer d_model"],
    objects: Sequence[str],
    subjects: Sequence[str],
    *,
    accepted: Sequence[Collection[str]] | None = None,
    folds_by: FoldsBy = "subject",
    seed: int = 0,
) -> Bool[np.ndarray, "sample layer"]:
    """Whether a probe that was not trained on a sample names its object, for every layer alone.

    The probe is multinomial logistic regression on standardised states. Its classes are the objects of the training
    samples, so an object that is not among them is never named. Scale and strength of the penalty come from the
    training samples: the strength that is right most often in folds inside them, drawn in the same way.

    Args:
        objects: the answer of every sample that a probe is trained on.
        accepted: the objects that are right answers of every sample; only its own unless given.
        subjects: whose state every sample is.
        folds_by: "subject" keeps all samples of a subject on one side, so that the probe has to know the attribute of
            subjects that it never saw. "sample" deals the samples out one by one as in the paper: a probe then also
            scores by recognising the subject, which stands on both sides.
        seed: of the folds, which are the same for all layers.

    Raises:
        PatchscopesError: the arguments are not of one length, fewer than two subjects (samples, with folds by sample),
            or states that are not finite.
    """
    _check_samples(states, objects, subjects)
    groups = np.unique(subjects, return_inverse=True)[1] if folds_by == "subject" else np.arange(len(states))
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise PatchscopesError(
            f"a probe is trained on some {folds_by}s and tested on others, and there is {n_groups}; give at least two"
        )
    names, classes = np.unique(objects, return_inverse=True)
    fits = _tabulate_fits(names, [[one] for one in objects] if accepted is None else accepted)
    folds = _draw_folds(groups, N_FOLDS, seed)
    right = np.zeros(states.shape[:2], dtype=bool)
    # The matrices are small: with a second thread for each product the same takes ten times as long.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # scikit-learn takes names of which many stand once for numbers to be predicted.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        for layer in range(states.shape[1]):
            of_layer = states[:, layer].astype(np.float64)
            for fold in range(folds.max() + 1):
                test = folds == fold
                strength = _choose_strength(of_layer[~test], classes[~test], fits[~test], groups[~test], seed)
                right[test, layer] = _train_and_test(of_layer, classes, fits, test, (strength,))[0]
    return right


def _tabulate_fits(names: np.ndarray, accepted: Sequence[Collection[str]]) -> Bool[np.ndarray, "sample object"]:
    """Whether each object is a right answer of each sample."""
    return np.array([[name in of_sample for name in names] for of_sample in accepted], dtype=bool)


def _draw_folds(groups: Int[np.ndarray, " sample"], n_folds: int, seed: int) -> Int[np.ndarray, " sample"]:
    """The fold of every sample. Groups stay whole; folds differ by at most one group, and none is empty."""
    names, numbers = np.unique(groups, return_inverse=True)
    folds = np.arange(len(names)) % min(n_folds, len(names))
    return np.random.default_rng(seed).permutation(folds)[numbers]


def _choose_strength(
    states: Float[np.ndarray, "sample d_model"],
    classes: Int[np.ndarray, " sample"],
    fits: Bool[np.ndarray, "sample object"],
    groups: Int[np.ndarray, " sample"],
    seed: int,
) -> float:
    """The strength of the penalty whose probes are right most often in folds inside these samples.

    Of equals it is the weakest: where the folds cannot tell, as with objects of one subject each, a strong penalty
    would leave a probe that says the most frequent object whatever the state.
    """
    folds = _draw_folds(groups, N_INNER_FOLDS, seed)
    n_right = np.zeros(len(STRENGTHS), dtype=int)
    for fold in range(folds.max() + 1):
        n_right += _train_and_test(states, classes, fits, folds == fold, STRENGTHS).sum(axis=1)
    return max(zip(n_right, STRENGTHS, strict=True))[1]


def _train_and_test(
    states: Float[np.ndarray, "sample d_model"],
    classes: Int[np.ndarray, " sample"],
    fits: Bool[np.ndarray, "sample object"],
    test: Bool[np.ndarray, " sample"],
    strengths: Sequence[float],
) -> Bool[np.ndarray, "strength test_sample"]:
    """Whether probes trained on all but the test samples name right answers of these, by strength of the penalty."""
    known = np.unique(classes[~test])
    fits = fits[test]
    can_be_right = fits[:, known].any(axis=1)
    if len(known) < 2 or not can_be_right.any():
        # Nothing to train: a probe with one class always says it, and one that knows none of the answers is wrong.
        return np.tile(can_be_right, (len(strengths), 1))
    scaler = StandardScaler().fit(states[~test])
    inputs, test_inputs = scaler.transform(states[~test]), scaler.transform(states[test])
    # The weights of a penalised probe lie in the span of its training states, and the penalty does not change with
    # rotation: in an orthonormal basis of that span the probe is the same, with fewer dimensions if samples are few.
    basis = np.linalg.qr(inputs.T)[0]
    inputs, test_inputs = inputs @ basis, test_inputs @ basis
    # Each strength starts from the weights of the stronger penalty before it.
    probe = LogisticRegression(solver="newton-cg", warm_start=True, max_iter=1000)
    right = np.zeros((len(strengths), len(fits)), dtype=bool)
    for row, strength in enumerate(strengths):
        probe.set_params(C=strength).fit(inputs, classes[~test])
        right[row] = fits[np.arange(len(fits)), probe.predict(test_inputs)]
    return right


def _check_samples(states: np.ndarray, objects: Sequence[str], subjects: Sequence[str]) -> None:
    """Raise a PatchscopesError unless the samples are complete and finite."""
    if not len(states) == len(objects) == len(subjects):
        raise PatchscopesError(
            f"got {len(states)} states, {len(objects)} objects and {len(subjects)} subjects; give one each for a sample"
        )
    finite = np.isfinite(states).all(axis=-1)
    if not finite.all():
        sample, layer = np.argwhere(~finite)[0]
        raise PatchscopesError(
            f"the state of sample {sample} ({subjects[sample]!r}) in place {layer} of the layers is not finite; leave "
            "the sample out, or run the model in float32"
        )
