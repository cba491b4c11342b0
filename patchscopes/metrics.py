"""How well a lens reads the model's own next-token prediction (paper, section 4.1), and how sure we are of it.

rouge-score and SciPy take a second or two to import, so that is left to the functions that need them.
"""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.words import split_words


def precision_at_1(
    predicted: Int[Tensor, " sample *rest"], final_logits: Float[Tensor, "sample d_vocab"]
) -> Bool[Tensor, " sample *rest"]:
    """Whether the lens's most likely token is the model's own.

    Args:
        predicted: the argmax of the lens, for one or more lenses or layers per sample.
        final_logits: the model's own prediction at the same position.
    """
    own = final_logits.argmax(dim=-1).reshape(-1, *[1] * (predicted.ndim - 1))
    return predicted == own


def surprisal(
    predicted: Int[Tensor, " sample *rest"], final_logits: Float[Tensor, "sample d_vocab"]
) -> Float[Tensor, " sample *rest"]:
    """Minus the log-probability, in nats, that the model's own prediction gives to the lens's most likely token.

    Args: as for `precision_at_1`.
    """
    log_probabilities = torch.log_softmax(final_logits.float(), dim=-1)
    return -log_probabilities.gather(1, predicted.reshape(len(predicted), -1)).reshape(predicted.shape)


def rank(logits: Float[Tensor, "row d_vocab"], tokens: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """How many tokens a lens ranks before the given one: Precision@k is how often that is below k.

    Of equal logits the first ranks first, as with argmax; a logit that is not a number ranks last.
    """
    own = logits.gather(1, tokens[:, None])
    before = torch.arange(logits.shape[1], device=logits.device) < tokens[:, None]
    return (~(logits <= own) | ((logits == own) & before)).sum(dim=-1)


ROUGE_TYPES = ("rouge1", "rougeL")


@cache
def _get_rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class WordTokenizer(Tokenizer):
        """Words of any script, where that of the package drops all letters but a to z."""

        def tokenize(self, text: str) -> list[str]:
            return split_words(text)

    return RougeScorer(ROUGE_TYPES, tokenizer=WordTokenizer())


def rouge(text: str, *references: str) -> dict[str, dict[str, float]]:
    """ROUGE-1 and ROUGE-L of a text against references (Lin 2004), as the package rouge-score computes them.

    Words (see `patchscopes.words`) are compared in lower case and without stemming. Of scripts without spaces each
    letter counts as one. Of several references the one with the highest F1 counts, for each type its own.

    Returns:
        by type: `precision`, `recall` and `f1`.

    Raises:
        PatchscopesError: no reference.
    """
    if not references:
        raise PatchscopesError("ROUGE compares with references, and none was given; give at least one")
    scores = _get_rouge_scorer().score_multi(references, text)
    return {
        kind: {"precision": float(score.precision), "recall": float(score.recall), "f1": float(score.fmeasure)}
        for kind, score in scores.items()
    }


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean over samples and its 95 % bootstrap interval, for each of the remaining dimensions."""

    mean: Float[np.ndarray, " *rest"]
    low: Float[np.ndarray, " *rest"]
    high: Float[np.ndarray, " *rest"]

    def as_json(self) -> dict[str, Any]:
        """The form of the result files: `{"mean": [...], "ci95": [[low, high], ...]}`."""
        return {"mean": self.mean.tolist(), "ci95": np.stack([self.low, self.high], axis=-1).tolist()}


def mean_with_interval(
    values: Float[np.ndarray, " sample *rest"],
    *,
    groups: Int[np.ndarray, " sample"] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> MeanWithInterval:
    """The mean over samples with a 95 % percentile bootstrap interval (Efron 1979).

    Args:
        groups: samples with the same number are resampled together, because they are not independent (several
            positions of one text, say); without it every sample is its own group.
        seed: of the resampling.
        n_resamples: bootstrap samples drawn.
    """
    means = resample_means(values, groups=groups, seed=seed, n_resamples=n_resamples)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return MeanWithInterval(mean=np.asarray(values.mean(axis=0)), low=np.asarray(low), high=np.asarray(high))


def resample_means(
    values: Float[np.ndarray, " sample *rest"],
    *,
    groups: Int[np.ndarray, " sample"] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Float[np.ndarray, " resample *rest"]:
    """The means of the bootstrap samples that `mean_with_interval` takes its interval from.

    Args: as there.
    """
    numbers = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(numbers.max()) + 1
    sizes = np.bincount(numbers, minlength=n_groups)
    sums = np.zeros((n_groups, *values.shape[1:]))
    np.add.at(sums, numbers, values)
    draws = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
    totals = np.tensordot(draws, sums, axes=1)
    return np.asarray(totals / (draws @ sizes).reshape(-1, *[1] * (values.ndim - 1)))


@dataclass(frozen=True, kw_only=True)
class PairedTTest:
    """A two-sided paired t-test of first against second.

    Attributes:
        mean_difference: of first minus second.
        t: None where all differences are equal, so that they have no spread to be measured by.
        p: how likely differences as large are if the true mean is zero: 1 where all are zero, 0 where all are equal
            and not zero.
        p_bonferroni: p times the number of comparisons, at most 1.
        n: how many pairs.
    """

    mean_difference: float
    t: float | None
    p: float
    p_bonferroni: float
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        """The form of the result files: every field by its name."""
        return asdict(self)


def paired_t_test(
    first: Float[np.ndarray, " pair"], second: Float[np.ndarray, " pair"], n_comparisons: int
) -> PairedTTest:
    """Whether two methods differ over the same pairs, by the two-sided paired t-test with Bonferroni's correction.

    In the paper (section 4.2) the pairs are layers and the comparisons its tasks. The test takes pairs as independent.
    Layers are not, which makes p too small.

    Raises:
        PatchscopesError: fewer than two pairs, no comparison, or values that are not finite.
    """
    if len(first) < 2 or n_comparisons < 1:
        raise PatchscopesError(
            "a paired t-test takes two or more pairs and counts as one comparison itself; got "
            f"{len(first)} pairs and {n_comparisons} comparisons"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise PatchscopesError("a paired t-test takes finite values; leave out the pairs of which one was not measured")
    from scipy.stats import ttest_rel

    differences = first - second
    rounding = 4 * np.finfo(differences.dtype).eps * np.abs([first, second]).max()
    t: float | None
    if np.ptp(differences) <= rounding:
        t, p = None, float(np.abs(differences).max() <= rounding)
    else:
        t, p = (float(value) for value in ttest_rel(first, second))
    return PairedTTest(
        mean_difference=float(differences.mean()), t=t, p=p, p_bonferroni=min(1.0, p * n_comparisons), n=len(first)
    )
