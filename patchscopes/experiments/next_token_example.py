"""The model's next token, read out of one hidden state by every lens: original, Patchscope, and unpatched control.

One source prompt and one token of it. What Figure 2 (`next_token`), the twins (`lenses`) and the Future Lens
(`future_lens`) measure on many samples is shown here for one, layer by layer:

* `logit_lens`, `tuned_lens`, `jacobian_lens`: a formula, and as a Patchscope T = S, i* = i, ℓ* = last;
* `linear`: the Future Lens's affine maps to later tokens, both ways like these;
* `fixed_prompt`, `learned_prompt`: the Future Lens's prompts, by plain hooks, and as a Patchscope by the fast engine;
* `token_identity`, `simplescope`: the paper's own, which are Patchscopes from the start.

The control of a target prompt that has nothing to do with S is what the model says after it with nothing patched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import AffineLens, Lens, LogitLens, source_patchscope
from patchscopes.engine.hooks import extract_replaced
from patchscopes.engine.proof import Engine
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.checks import check_methods
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import NextTokenExampleConfig
from patchscopes.experiments.future_lens import build_prompt_reader
from patchscopes.experiments.lenses import Twin, summarise_twins
from patchscopes.learned.config import FIXED_PROMPT, N_TOKENS
from patchscopes.learned.continuation import read_with_continuation
from patchscopes.learned.future_lens import SoftPrompt, build_fixed_prompt_target
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.likely_tokens import check_k, list_likely_tokens
from patchscopes.metrics import rank, surprisal
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, resolve_position, to_token_ids

# By method, the maps that it needs.
Maps = Mapping[str, Mapping[MapKey, AffineMap]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Forms:
    """A method: its original, the same as a Patchscope, and the target prompt if that is not S.

    Attributes:
        original: of the paper's own methods, the Patchscope itself.
        patchscope: None for those.
        target: of the control; None where T = S.
    """

    original: Lens
    patchscope: Lens | None = None
    target: TargetPrompt | None = None


@torch.no_grad()
def run(
    model: LensModel,
    config: NextTokenExampleConfig,
    *,
    maps: Maps | None = None,
    soft_prompt: SoftPrompt | None = None,
    progress: Progress = iter,
) -> Json:
    """The `results` of the result file.

    Args:
        maps: of `tuned_lens`, `jacobian_lens` and `linear`, by method.
        soft_prompt: of `learned_prompt`.
        progress: wraps the iteration over methods, `tqdm` for instance.

    Returns:
        the model's `own` token (the last of its `continuation`, `ahead` tokens after i), and for each of `methods`, and
        its Patchscope under `…_patchscope`, over layers: the `top_k` tokens, the `rank` of the own one, and Surprisal
        as in Figure 2 (of the lens's first token, by the model's own prediction). `controls` has the same of each
        target prompt unpatched. `twins` says how far the logits of original and Patchscope are apart, `by_layer` too.

    Raises:
        PatchscopesError: a position, layer or method does not exist, there is no layer, or a method lacks what it has
            to learn first.
    """
    methods = choose_methods(config, maps or {}, soft_prompt)
    layers = resolve_layers(model, config.layers)
    if not layers:
        raise PatchscopesError("there is no layer to read: give at least one, or None for all blocks")
    check_k(model, config.k)
    tokens = to_token_ids(model, config.chat.of_source(config.source_prompt))
    position = resolve_position(len(tokens), config.source_position)
    forms = build_forms(model, tokens[: position + 1], methods, config, maps or {}, soft_prompt)
    source = read_with_continuation(model, [tokens], [position], layers, config.ahead)
    rows, row_layers = source.representations[0], torch.tensor(layers, device=source.representations.device)
    own = Own(logit_lens(model, source.final[0, -1]))
    results: Json = {
        "layers": layers,
        "n_samples": 1,
        "ahead": config.ahead,
        "source_tokens": decode_each_token(model, tokens),
        "source_position": position,
        "continuation": decode_each_token(model, source.tokens[0]),
        "own": _take_only_row(own.read_out(model, own.logits[None], config.k)),
        "methods": {},
        "controls": {},
        "twins": {},
    }
    for method in progress(methods):
        form = forms[method]
        logits = form.original(rows, row_layers)
        results["methods"][method] = own.read_out(model, logits, config.k)
        if form.patchscope is not None:
            patched = form.patchscope(rows, row_layers)
            results["methods"][f"{method}_patchscope"] = own.read_out(model, patched, config.k)
            results["twins"][method] = compare_by_layer(patched, logits)
        if form.target is not None:
            unpatched = read_unpatched(form.patchscope or form.original, form.target)
            results["controls"][method] = _take_only_row(own.read_out(model, unpatched, config.k))
    return results


@dataclass(frozen=True, eq=False)
class Own:
    """The model's own prediction, which every lens is held against."""

    logits: Float[Tensor, " d_vocab"]

    def read_out(self, model: LensModel, logits: Float[Tensor, "row d_vocab"], k: int) -> Json:
        """What a lens says in each row."""
        token = self.logits.argmax().expand(len(logits))
        return {
            "top_k": [[likely._asdict() for likely in row] for row in list_likely_tokens(model, logits, k)],
            "rank": rank(logits, token).tolist(),
            "surprisal": surprisal(logits.argmax(dim=-1)[None], self.logits[None])[0].tolist(),
        }


def _take_only_row(read: Json) -> Json:
    return {name: values[0] for name, values in read.items()}


def choose_methods(config: NextTokenExampleConfig, maps: Maps, soft_prompt: SoftPrompt | None) -> tuple[str, ...]:
    """The methods that were asked for, or all that can be.

    Raises:
        PatchscopesError: one does not exist, says nothing of this token, or lacks what it has to learn first; or the
            token is not among the next `N_TOKENS`.
    """
    if not 1 <= config.ahead <= N_TOKENS:
        raise PatchscopesError(f"ahead must be from 1 (the next token) to {N_TOKENS}, got {config.ahead}")
    learned = {*maps, *(["learned_prompt"] if soft_prompt is not None else [])}
    needs_learning = {"tuned_lens", "jacobian_lens", "linear", "learned_prompt"}
    known = NextTokenExampleConfig.METHODS if config.ahead == 1 else NextTokenExampleConfig.AHEAD
    if config.methods is None:
        return tuple(method for method in known if method not in needs_learning - learned)
    check_methods(config.methods, NextTokenExampleConfig.METHODS)
    for method in config.methods:
        if method not in known:
            raise PatchscopesError(
                f"{method} reads the next token only, and token {config.ahead} after the state was asked for: leave it "
                f"out, or take ahead=1"
            )
        if method in needs_learning - learned:
            raise PatchscopesError(f"{method} must be learned first: see patchscopes.learned or scripts/train_lens.py")
    return config.methods


def build_forms(
    model: LensModel,
    source: Int[Tensor, " pos"],
    methods: Sequence[str],
    config: NextTokenExampleConfig,
    maps: Maps,
    soft_prompt: SoftPrompt | None,
) -> dict[str, Forms]:
    """The forms of each method, for the last token of `source`.

    Raises:
        PatchscopesError: maps or prompt are those of another model.
    """
    # One target prompt, and one clean run over it, for all methods with T = S.
    in_source = source_patchscope(model, source, -1)
    forms: dict[str, Forms] = {}
    for method in methods:
        if method == "logit_lens":
            forms[method] = Forms(original=LogitLens(model), patchscope=in_source)
        elif method in maps:
            ahead = config.ahead - 1 if method == "linear" else 0
            mapping = LayerMapping.to_last(model, maps[method], ahead)
            forms[method] = Forms(original=AffineLens(model, mapping), patchscope=replace(in_source, mapping=mapping))
        else:
            target = build_target(model, method, config, soft_prompt)
            patchscope = build_prompt_lens(target, config.ahead)
            if method in ("token_identity", "simplescope"):
                forms[method] = Forms(original=patchscope, target=target)
            else:
                by_hooks = build_prompt_lens(target, config.ahead, engine="hooks")
                forms[method] = Forms(original=by_hooks, patchscope=patchscope, target=target)
    return forms


def build_target(
    model: LensModel, method: str, config: NextTokenExampleConfig, soft_prompt: SoftPrompt | None
) -> TargetPrompt:
    """The target prompt of a method that has its own."""
    if method == "learned_prompt" and soft_prompt is not None:
        return soft_prompt.target(model)
    if method == "fixed_prompt":
        return build_fixed_prompt_target(model, config.chat.of_target(FIXED_PROMPT))
    prompt = SIMPLESCOPE_PROMPT if method == "simplescope" else build_token_identity_prompt()
    return placeholder_target(model, config.chat.of_target(prompt))


def build_prompt_lens(target: TargetPrompt, ahead: int, *, engine: Engine = "auto") -> Lens:
    """The Patchscope with ℓ* = ℓ as a lens on the token `ahead` tokens after T, which goes on by itself until there."""
    read = build_prompt_reader(target, None, ahead, engine=engine)

    def lens(rows: Float[Tensor, "row d_model"], layers: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
        return torch.cat([logits[:, -1] for logits in read(rows, layers)])

    return lens


def read_unpatched(lens: Lens, target: TargetPrompt) -> Float[Tensor, "1 d_vocab"]:
    """What the lens says of the target prompt as it is: a state that is written over itself changes nothing."""
    last = target.model.cfg.n_layers - 1
    return lens(extract_replaced(target, [last]), torch.tensor([last], device=target.model.cfg.device))


def compare_by_layer(patchscope: Float[Tensor, "row d_vocab"], original: Float[Tensor, "row d_vocab"]) -> Json:
    """How far an original and its Patchscope are apart, altogether and at each layer."""
    twins = [Twin() for _ in original]
    for twin, patched, plain in zip(twins, patchscope, original, strict=True):
        twin.compare(patched[None], plain[None])
    return summarise_twins(twins) | {"by_layer": [twin.largest_difference for twin in twins]}
