"""Probes: linear classifiers trained to read an attribute out of a state, the paper's baseline in section 4.2."""

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Probes:
    """A probe for each of some layers: p = softmax(h W + b) over the objects of the samples that it was trained on.

    Attributes:
        objects: the classes.
        weights: W.
        biases: b.
    """

    objects: tuple[str, ...]
    weights: Float[np.ndarray, "layer d_model object"]
    biases: Float[np.ndarray, "layer object"]

    def __call__(
        self, states: Float[np.ndarray, "row d_model"], slots: Sequence[int]
    ) -> Float[np.ndarray, "row object"]:
        """How likely each object is for each state, which is of the layer in place `slots[row]` of those trained on."""
        rows = np.asarray(slots)
        scores = np.einsum("rd,rdo->ro", states.astype(np.float64), self.weights[rows]) + self.biases[rows]
        return softmax(scores, axis=-1)


def train_probes(
    states: Float[np.ndarray, "sample layer d_model"],
    objects: Sequence[str],
    subjects: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Probes:
    """A probe for every layer, trained on all the samples as those of `cross_validate_probe` are on theirs.

    Args:
        subjects: whose state every sample is: folds that the strength is chosen in keep them whole.
        progress: wraps the iteration over layers, `tqdm` for instance.

    Raises:
        PatchscopesError: the arguments are not of one length, fewer than two subjects, or states that are not finite.
    """
    _check_samples(states, objects, subjects)
    groups = np.unique(subjects, return_inverse=True)[1]
    _check_groups(groups, "subject")
    names, classes = np.unique(objects, return_inverse=True)
    fits = _tabulate_fits(names, [[one] for one in objects])
    weights = np.zeros((states.shape[1], states.shape[2], len(names)))
    biases = np.zeros((states.shape[1], len(names)))
    for layer in progress(range(states.shape[1])) if len(names) > 1 else ():
        of_layer = states[:, layer].astype(np.float64)
        # Only here, as these settings are the process's, and others may work between the steps.
        with _train_quietly():
            strength = _choose_strength(of_layer, classes, fits, groups, seed)
            ((weights[layer], biases[layer]),) = _train(of_layer, classes, (strength,))
    return Probes(objects=tuple(names.tolist()), weights=weights, biases=biases)


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
    _check_groups(groups, folds_by)
    names, classes = np.unique(objects, return_inverse=True)
    fits = _tabulate_fits(names, [[one] for one in objects] if accepted is None else accepted)
    folds = _draw_folds(groups, N_FOLDS, seed)
    right = np.zeros(states.shape[:2], dtype=bool)
    with _train_quietly():
        for layer in range(states.shape[1]):
            of_layer = states[:, layer].astype(np.float64)
            for fold in range(folds.max() + 1):
                test = folds == fold
                strength = _choose_strength(of_layer[~test], classes[~test], fits[~test], groups[~test], seed)
                right[test, layer] = _train_and_test(of_layer, classes, fits, test, (strength,))[0]
    return right


@contextmanager
def _train_quietly() -> Iterator[None]:
    """On one thread, and without warnings that are none here."""
    # The matrices are small: with a second thread for each product the same takes ten times as long.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # scikit-learn takes names of which many stand once for numbers to be predicted.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


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
    scores = [states[test] @ weights + biases for weights, biases in _train(states[~test], classes[~test], strengths)]
    return np.array([fits[np.arange(len(fits)), known[of_strength.argmax(axis=1)]] for of_strength in scores])


def _train(
    states: Float[np.ndarray, "sample d_model"], classes: Int[np.ndarray, " sample"], strengths: Sequence[float]
) -> Iterator[tuple[Float[np.ndarray, "d_model class"], Float[np.ndarray, " class"]]]:
    """W and b of a probe for each strength of the penalty, over the classes of these samples (two at least)."""
    scaler = StandardScaler().fit(states)
    inputs = scaler.transform(states)
    # The weights of a penalised probe lie in the span of its training states, and the penalty does not change with
    # rotation: in an orthonormal basis of that span the probe is the same, with fewer dimensions if samples are few.
    basis = np.linalg.qr(inputs.T)[0]
    inputs = inputs @ basis
    # Each strength starts from the weights of the stronger penalty before it.
    probe = LogisticRegression(solver="newton-cg", warm_start=True, max_iter=1000)
    for strength in strengths:
        probe.set_params(C=strength).fit(inputs, classes)
        coefficients, constants = probe.coef_, probe.intercept_
        if len(constants) == 1:
            # Of two classes scikit-learn keeps the score of the second against the first.
            coefficients, constants = np.vstack([0 * coefficients, coefficients]), np.array([0, *constants])
        weights = (basis @ coefficients.T) / scaler.scale_[:, None]
        yield weights, constants - scaler.mean_ @ weights


def _check_groups(groups: Int[np.ndarray, " sample"], name: str) -> None:
    """Raise a PatchscopesError unless some can be kept for testing."""
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise PatchscopesError(
            f"a probe is trained on some {name}s and tested on others, and there is {n_groups}; give at least two"
        )


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
