"""Causal tracing of one prompt (Meng et al. 2022), for a quick look: which states carry the answer, at which layers.

Noise on the subject's embeddings takes the answer away; the clean state of one token at one layer is put back. Three
tokens are tried: the last one of the subject, the last one of the prompt, and as a control one between them. The answer
is the token that the model itself finds most likely.

The Patchscope (T = S + ε, i* = i, ℓ* = ℓ) is measured at each layer, the original (whole forward passes with plain
hooks) at some of them; the two are one computation, and how far they are apart is rounding.
"""

from collections.abc import Sequence
from itertools import product

from jaxtyping import Float
from torch import Tensor

from patchscopes.errors import PatchscopesError
from patchscopes.experiments.causal_tracing import FORMS
from patchscopes.experiments.causal_tracing_measures import list_restorations
from patchscopes.experiments.causal_tracing_states import Restoration, Trace, measure_spread, prepare_trace
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import TracingExampleConfig
from patchscopes.experiments.facts import KnownFact, describe_fact, locate_subject, take_answer
from patchscopes.model.layer_names import thin_out
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token


def run(
    model: LensModel,
    prompt: str,
    subject: str,
    config: TracingExampleConfig,
    *,
    position: int | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file: the answer's probability in each form, over its layers, by token restored.

    Args:
        subject: words of the prompt.
        position: of a token of the subject, if it stands in the prompt several times.
        progress: wraps the iteration over forms and tokens.

    Raises:
        PatchscopesError: the subject is not in the prompt, a layer does not exist, or there is no noise.
    """
    if config.noise <= 0 or config.n_noise_samples < 1:
        raise PatchscopesError(
            f"noise must be above 0 and have at least one sample, got {config.noise:g} and {config.n_noise_samples}: "
            "without noise nothing is taken away that could be restored"
        )
    layers = resolve_layers(model, config.layers)
    fact = take_answer(model, prompt, locate_subject(model, prompt, subject, position), config.chat)
    spread = measure_spread(model, [fact])
    # As in `causal_tracing`: the noise of the first fact.
    trace = prepare_trace(model, fact, config.noise * spread, config.n_noise_samples, (config.seed, 0))
    restored = choose_tokens(fact)
    original_layers = choose_inner(layers, config.n_original_layers)
    of_method = {"original": original_layers, "patchscope": layers}
    methods: Json = {}
    probabilities: dict[tuple[str, str], Float[Tensor, "layer noise"]] = {}
    for method, token in progress(list(product(of_method, restored))):
        corrupted, found = restore(trace, restored[token], of_method[method], method, config.batch_size)
        if method not in methods:
            ((clean,),) = FORMS[method](trace.without_noise(), [Restoration()], config.batch_size)
            methods[method] = {
                "layers": of_method[method],
                "clean": float(clean),
                "corrupted": float(corrupted.mean()),
                "restored": {},
            }
        probabilities[method, token] = found
        methods[method]["restored"][token] = found.mean(dim=-1).tolist()
    both = [layers.index(layer) for layer in original_layers]
    differences = [
        float((probabilities["original", token] - probabilities["patchscope", token][both]).abs().max())
        for token in restored
    ]
    return {
        **describe_fact(model, fact),
        "layers": layers,
        "n_samples": 1,
        "embedding_spread": spread,
        "tokens": decode_each_token(model, fact.tokens),
        "subject_positions": list(fact.subject),
        "restored_positions": restored,
        "methods": methods,
        "largest_probability_difference": max(differences),
    }


def choose_tokens(fact: KnownFact) -> dict[str, int]:
    """The positions of the tokens to restore, by what they are.

    A control is the token in the middle between the subject and the last token; if there is none, the subject's first.
    A subject of one token right before the last one leaves none, and one that ends the prompt has its own last token
    as the last.
    """
    last_subject, last = fact.subject[-1], len(fact.tokens) - 1
    between = range(last_subject + 1, last)
    chosen = {"last_subject": last_subject} | ({"last": last} if last > last_subject else {})
    if between:
        return chosen | {"control": between[len(between) // 2]}
    return chosen | ({"control": fact.subject[0]} if len(fact.subject) > 1 else {})


def choose_inner(layers: Sequence[int], n_layers: int | None) -> list[int]:
    """At most `n_layers` of the layers at equal distances; all for None.

    Neither the first nor the last, where least is to be seen, if there are others.
    """
    if n_layers is None or n_layers >= len(layers):
        return list(layers)
    return thin_out(layers, n_layers + 2)[1:-1]


def restore(
    trace: Trace, position: int, layers: Sequence[int], method: str, batch_size: int | None
) -> tuple[Float[Tensor, " noise"], Float[Tensor, "layer noise"]]:
    """How likely the answer is in each corrupted run, and with the clean state of one token put back at each layer."""
    restorations = list_restorations("resid", [position], layers, trace.model.cfg.n_layers, window=1)
    runs = FORMS[method](trace, [Restoration(), *restorations], batch_size)
    return runs[0], runs[1:]
