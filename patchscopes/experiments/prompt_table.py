"""The table of a prompt: what a lens reads after every token at every layer, beside what the model itself predicts.

Every state of the prompt is read by one lens, any of those of Figure 2 (`next_token`) or one's own. A cell holds the
token that the lens finds most likely to come next, and how near the lens is to the model's own prediction at that
position. `tabulate_prompt` is for notebooks, where the table shows itself in colours; `run` is the experiment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.baselines import Lens, LogitLens
from patchscopes.engine.batching import run_in_batches
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.overflow import check_finite
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import PromptTableConfig
from patchscopes.experiments.next_token import build_lenses
from patchscopes.metrics import rank
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.plots.prompt_table_html import render_prompt_table
from patchscopes.positions import find_token_spans
from patchscopes.prompts import Chat
from patchscopes.results import Json
from patchscopes.tokens import Text, decode_each_token, has_added_bos, to_token_ids

# Rows that are compared with the model's prediction at once: what that takes is a few times their logits.
ROWS_COMPARED = 64


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PromptTable:
    """What a lens reads at every token and layer of a prompt, as a table that a notebook shows in colours.

    Attributes:
        model_id: the name of the model.
        color: what the colours stand for, one of `PromptTableConfig.COLORS`; `dataclasses.replace(table, color="kl")`
            shows the same table in others.
        results: those of the result file: `positions` and `tokens` of the prompt, `layers`, the `top` token and its
            `probability` of the model's `own` prediction at each position, and under `methods` and the name of the
            lens four tables over (layer, position): `top` and `probability`; `rank`, how many tokens the lens ranks
            before the model's own choice; and `kl`, of the lens from the model's prediction, in nats.

    Raises:
        PatchscopesError: `color` is none of them.
    """

    model_id: str
    color: str = PromptTableConfig.color
    results: Json

    def __post_init__(self) -> None:
        check_color(self.color)

    def __repr__(self) -> str:
        (lens,) = self.results["methods"]
        size = f"{len(self.results['tokens'])} tokens × {len(self.results['layers'])} layers"
        return f"PromptTable({lens}, {size}, {self.model_id}, coloured by {self.color})"

    def _repr_html_(self) -> str:
        """The table in colours, for a notebook."""
        return render_prompt_table(self.results, self.color, self.model_id)


def run(model: LensModel, config: PromptTableConfig, **learned: Any) -> Json:
    """The `results` of the result file, which `PromptTable` describes.

    Args:
        learned: as for `tabulate_prompt`.

    Raises:
        PatchscopesError: as `check_options` and `tabulate_prompt`.
    """
    check_options(model, config)
    options = {name: value for name, value in vars(config).items() if name not in ("prompt", "chat")}
    prompt = config.chat.of_source(config.prompt)
    return tabulate_prompt(model, prompt, **options, **(learned | {"chat": config.chat})).results


def check_options(model: LensModel, config: PromptTableConfig) -> None:
    """Refuse what no lens can make a figure of, before one is learned.

    Raises:
        PatchscopesError: a layer does not exist, or the prompt has no token, or more than the model or a figure holds.
    """
    resolve_layers(model, config.layers)
    n_tokens = len(find_positions(model, config.chat.of_source(config.prompt), config.bos))
    if n_tokens > PromptTableConfig.MAX_TOKENS:
        raise PatchscopesError(
            f"the prompt has {n_tokens} tokens, and a figure shows at most {PromptTableConfig.MAX_TOKENS}: shorten it "
            "(tabulate_prompt makes tables of any length for a notebook)"
        )


def check_color(color: str) -> None:
    """Refuse what cells cannot be coloured by.

    Raises:
        PatchscopesError: it is none of `PromptTableConfig.COLORS`.
    """
    if color not in PromptTableConfig.COLORS:
        raise PatchscopesError(
            f"cells cannot be coloured by {color!r}: choose from {', '.join(PromptTableConfig.COLORS)}"
        )


def find_positions(model: LensModel, prompt: Text, bos: bool) -> range:
    """The positions of the prompt that have a column: BOS, where it was put in front, only if it is asked for.

    Of a chat these are the prompt and what the template puts behind it, up to where the assistant goes on; what it puts
    in front is like BOS.

    Raises:
        PatchscopesError: there are none, or more than the model reads.
    """
    tokens = to_token_ids(model, prompt)
    if isinstance(prompt, Chat):
        spans = find_token_spans(model, prompt)
        n_in_front = next((number for number, (start, end) in enumerate(spans) if end > start), len(spans))
    else:
        n_in_front = int(has_added_bos(model, prompt, tokens))
    positions = range(0 if bos else n_in_front, len(tokens))
    if not positions:
        raise PatchscopesError("the prompt is empty: give at least one character")
    return positions


@torch.no_grad()
def tabulate_prompt(
    model: LensModel,
    prompt: Text,
    lens: str | Lens = PromptTableConfig.lens,
    *,
    color: str = PromptTableConfig.color,
    layers: Sequence[int] | None = None,
    bos: bool = False,
    batch_size: int | None = None,
    **learned: Any,
) -> PromptTable:
    """What a lens reads at every token and layer of a prompt, as a table that shows itself in a notebook.

    The model runs the prompt once, and the lens reads all states in batches of rows.

    Args:
        lens: the name of a lens of Figure 2, or any lens.
        color: of the cells: `probability` of their tokens, `rank` of the model's own choice, or `kl` of the lens from
            the model's own prediction.
        layers: all blocks unless given.
        bos: with a column for the BOS token that is put in front of a text: the model knows nothing of the text there.
        batch_size: rows at a time; chosen by size unless given.
        learned: what `next_token.build_lenses` asks for to make a lens by its name, such as `maps`.

    Raises:
        PatchscopesError: the prompt has no token, or more than the model reads; a layer, lens or color does not exist;
            or a learned lens is not given what it has learned, or was learned on another model.
    """
    check_color(color)
    numbers = resolve_layers(model, layers)
    positions = find_positions(model, prompt, bos)
    if isinstance(lens, str):
        name, read_logits = lens, build_lenses(model, [lens], **({"maps": {}} | learned))[lens]
    else:
        name, read_logits = getattr(lens, "__name__", type(lens).__name__), lens
    tokens = to_token_ids(model, prompt)
    last = model.cfg.n_layers - 1
    states = extract_representations(
        model, [tokens] * len(positions), positions, [*numbers, last], batch_size=batch_size or 32
    )
    rows = read_rows(model, read_logits, states[:, :-1], states[:, -1], numbers, batch_size)
    # The model's own prediction is what the Logit Lens reads at the last layer.
    own = read_rows(model, LogitLens(model), states[:, -1:], states[:, -1], [last], batch_size)

    def by_layer(of_rows: list[Any]) -> list[list[Any]]:
        """Of rows by position and then by layer, the table over (layer, position)."""
        return [of_rows[number :: len(numbers)] for number in range(len(numbers))]

    results = {
        "layers": numbers,
        "positions": list(positions),
        "tokens": decode_each_token(model, tokens[positions.start :]),
        "own": {"top": decode_each_token(model, own.token), "probability": own.probability.tolist()},
        "methods": {
            name: {
                "top": by_layer(decode_each_token(model, rows.token)),
                "probability": by_layer(rows.probability.tolist()),
                "rank": by_layer(rows.rank.tolist()),
                "kl": by_layer(rows.kl.tolist()),
            }
        },
    }
    return PromptTable(model_id=str(model.cfg.model_name), color=color, results=results)


class Reading(NamedTuple):
    """What a lens says of each of some rows: its most likely token, how likely that is, how many tokens it ranks before
    the model's own choice, and its KL divergence from the model's prediction, in nats."""

    token: Int[Tensor, " row"]
    probability: Float[Tensor, " row"]
    rank: Int[Tensor, " row"]
    kl: Float[Tensor, " row"]


def read_rows(
    model: LensModel,
    lens: Lens,
    states: Float[Tensor, "position layer d_model"],
    last_states: Float[Tensor, "position d_model"],
    layers: Sequence[int],
    batch_size: int | None,
) -> Reading:
    """What a lens says of all layers of the first position, then of the next, beside what the model says by its last
    states. Logits exist for one batch of rows, and for the positions that it touches."""
    rows = states.flatten(0, 1)
    row_layers = torch.tensor(layers, device=rows.device).repeat(len(states))
    row_positions = torch.arange(len(states), device=rows.device).repeat_interleave(len(layers))

    def read(some: slice) -> Reading:
        logits = check_finite(lens(rows[some], row_layers[some]), model.cfg.dtype, "logits")
        places = row_positions[some]
        touched = slice(int(places[0]), int(places[-1]) + 1)
        own = torch.log_softmax(logit_lens(model, last_states[touched]).float(), dim=-1)
        parts = zip(logits.split(ROWS_COMPARED), (places - touched.start).split(ROWS_COMPARED), strict=True)
        return join_readings([compare_with_own(few, own[of_few]) for few, of_few in parts])

    return join_readings([reading for _, reading in run_in_batches(model, len(rows), read, batch_size=batch_size)])


def join_readings(readings: Sequence[Reading]) -> Reading:
    """The readings of several batches as one."""
    return Reading(*map(torch.cat, zip(*readings, strict=True)))


def compare_with_own(logits: Float[Tensor, "row d_vocab"], own: Float[Tensor, "row d_vocab"]) -> Reading:
    """What a lens says of some rows, beside the log-probabilities that the model itself gives at their positions."""
    said = torch.log_softmax(logits.float(), dim=-1)
    top = said.max(dim=-1)
    divergence = torch.nn.functional.kl_div(said, own, reduction="none", log_target=True).sum(dim=-1)
    return Reading(
        token=top.indices,
        probability=top.values.exp(),
        rank=rank(said, own.argmax(dim=-1)),
        # Of equal distributions rounding leaves a little on either side of 0.
        kl=divergence.clamp(min=0),
    )
