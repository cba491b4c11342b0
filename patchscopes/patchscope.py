"""The five choices of the paper as one object: (S, i, M, ℓ) are read, and written, through f, into (T, i*, M*, ℓ*).

It adds no engine: all that it does can be said with `extract_representations` and `patch_logits` or `patch_generate`.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import align_positions
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.proof import Engine
from patchscopes.engine.target import TargetPrompt, find_target_position
from patchscopes.errors import PatchscopesError
from patchscopes.learned.mappings import LayerMapping
from patchscopes.model.layers import EMBEDDING, resolve_layers, resolve_target_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.positions import find_substring_token_position
from patchscopes.tokens import Text, decode_each_token, resolve_position, to_token_ids

# f: any function of representations, or one that goes by their source layers.
RepresentationMapping: TypeAlias = LayerMapping | Callable[[Float[Tensor, "row d_in"]], Float[Tensor, "row d_out"]]


class TokenProbability(NamedTuple):
    """A token, as text, and how likely it is."""

    token: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Patchscope:
    """A Patchscope (Ghandeharioun et al., ICML 2024, section 3), at one or more source layers at once.

    Attributes:
        source_prompt: S, a text or its token ids.
        source_position: i, counted from either end, or a word of S (its first occurrence, its last token).
        model: M.
        source_layers: ℓ, one or several; all blocks unless given.
        target_prompt: T; None for T = S.
        target_position: i*, counted from either end, or a word of T (its last occurrence, as of a placeholder; its last
            token). Unless given it is i where T = S, and the last token elsewhere.
        mapping: f, a function of `[row, d_model]` or a LayerMapping; None for the identity.
        target_model: M*; None for M.
        target_layers: ℓ*: `"same"` (ℓ* = ℓ), `"last"`, `"embedding"`, a number, or one number for each ℓ.

    The representations are read anew by each call. The target prompt's clean run is kept, so make a new object after
    you have changed a model's weights.

    Raises:
        PatchscopesError: a position, word or layer does not exist, or f is missing or does not fit the layers.
    """

    source_prompt: Text
    source_position: int | str = -1
    model: LensModel
    source_layers: Sequence[int] | int | None = None
    target_prompt: Text | None = None
    target_position: int | str | None = None
    mapping: RepresentationMapping | None = None
    target_model: LensModel | None = None
    target_layers: str | int | Sequence[int] = "same"

    def __post_init__(self) -> None:
        # What is wrong is said now, and not when the model runs.
        _, target_model = self.source, self.target.model
        pairs = list(zip(self.resolved_source_layers, self.resolved_target_layers, strict=True))
        if isinstance(self.mapping, LayerMapping):
            self.mapping.check_pairs(pairs)
        elif self.mapping is None and target_model.cfg.d_model != self.model.cfg.d_model:
            raise PatchscopesError(
                f"the target model is {target_model.cfg.d_model} wide and the source model {self.model.cfg.d_model}: "
                "give a mapping between them, such as LayerMapping.between(...)"
            )

    @cached_property
    def source(self) -> tuple[Int[Tensor, " pos"], int]:
        """The tokens of S, and i counted from the start."""
        tokens = to_token_ids(self.model, self.source_prompt)
        if isinstance(self.source_position, str):
            text = _check_is_text(self.source_prompt, self.source_position)
            return tokens, find_substring_token_position(self.model, text, self.source_position)
        return tokens, resolve_position(len(tokens), self.source_position)

    @cached_property
    def target(self) -> TargetPrompt:
        """T with i*, in the target model."""
        model = self.target_model or self.model
        position = self.target_position
        if self.target_prompt is None:
            prompt = self.source_prompt
            default = self._align_position(model)
        else:
            prompt, default = self.target_prompt, -1
        if isinstance(position, str):
            position = find_target_position(model, _check_is_text(prompt, position), position)
        return TargetPrompt(model, prompt, default if position is None else position)

    @cached_property
    def resolved_source_layers(self) -> list[int]:
        """Each ℓ, by number."""
        return resolve_layers(self.model, self.source_layers)

    @cached_property
    def resolved_target_layers(self) -> list[int]:
        """ℓ* for each ℓ, by number."""
        return resolve_target_layers(self.target.model, self.resolved_source_layers, self.target_layers)

    @property
    @torch.no_grad()
    def vectors(self) -> Float[Tensor, "layer d_model"]:
        """What is written: f of the representation at each ℓ."""
        tokens, position = self.source
        layers = self.resolved_source_layers
        representations = extract_representations(self.model, [tokens], [position], layers)[0]
        if self.mapping is None:
            return representations
        if isinstance(self.mapping, LayerMapping):
            return self.mapping(representations, torch.tensor(layers, device=representations.device))
        return self.mapping(representations)

    def logits(self, *, engine: Engine = "auto", batch_size: int | None = None) -> Float[Tensor, "layer d_vocab"]:
        """Logits of the token after T, for each ℓ. Args and errors: as for `patch_logits`."""
        return patch_logits(
            self.target, self.vectors, self.resolved_target_layers, engine=engine, batch_size=batch_size
        )

    def top_k(
        self, k: int = 5, *, engine: Engine = "auto", batch_size: int | None = None
    ) -> list[list[TokenProbability]]:
        """The most likely tokens after T with their probabilities, for each ℓ.

        Raises:
            PatchscopesError: as `patch_logits`, or the model has fewer than `k` tokens.
        """
        n_tokens = self.target.model.cfg.d_vocab
        if not 1 <= k <= n_tokens:
            raise PatchscopesError(
                f"the model has {n_tokens} tokens, {k} most likely ones were asked for: give 1 to {n_tokens}"
            )
        logits = self.logits(engine=engine, batch_size=batch_size)
        top = torch.softmax(logits.float(), dim=-1).topk(k, dim=-1)
        return [
            [
                TokenProbability(*pair)
                for pair in zip(decode_each_token(self.target.model, ids), row.tolist(), strict=True)
            ]
            for ids, row in zip(top.indices, top.values, strict=True)
        ]

    def generate(
        self,
        max_new_tokens: int = 20,
        *,
        temperature: float = 0.0,
        engine: Engine = "auto",
        batch_size: int | None = None,
    ) -> list[str]:
        """What the target model says after T, for each ℓ. Args and errors: as for `patch_generate`."""
        tokens = patch_generate(
            self.target,
            self.vectors,
            self.resolved_target_layers,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            engine=engine,
            batch_size=batch_size,
        )
        continuations: list[str] = self.target.model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return continuations

    def __repr__(self) -> str:
        return f"Patchscope({', '.join(f'{symbol} = {value}' for symbol, value in self._describe())})"

    def _repr_html_(self) -> str:
        """The paper's table of the choices, for a notebook."""
        cells = self._describe()
        heads, values = (
            "".join(f"<{tag} style='text-align: left'>{html.escape(text)}</{tag}>" for text in texts)
            for tag, texts in (("th", [symbol for symbol, _ in cells]), ("td", [value for _, value in cells]))
        )
        return f"<table><tr>{heads}</tr><tr>{values}</tr></table>"

    def _describe(self) -> list[tuple[str, str]]:
        """The paper's symbols, and what stands for each of them here."""
        tokens, position = self.source
        source, target = (
            _describe_prompt(model, ids, at)
            for model, ids, at in (
                (self.model, tokens, position),
                (self.target.model, self.target.tokens, self.target.position),
            )
        )
        target_layers = (
            self.target_layers if isinstance(self.target_layers, str) else _describe_layers(self.resolved_target_layers)
        )
        name = type(self.mapping).__name__
        f = "identity" if self.mapping is None else getattr(self.mapping, "__name__", name)
        return [
            ("S", source[0]),
            ("i", source[1]),
            ("M", str(self.model.cfg.model_name)),
            ("ℓ", _describe_layers(self.resolved_source_layers)),
            ("T", target[0]),
            ("i*", target[1]),
            ("f", f),
            ("M*", str(self.target.model.cfg.model_name)),
            ("ℓ*", target_layers),
        ]

    def _align_position(self, model: LensModel) -> int:
        """i* of T = S: i itself, or where another model has read the same part of S."""
        _, position = self.source
        if model is self.model or model.tokenizer.get_vocab() == self.model.tokenizer.get_vocab():
            return position
        if not isinstance(self.source_prompt, str):
            raise PatchscopesError(
                f"{model.cfg.model_name!r} has other tokens than {self.model.cfg.model_name!r}: give S as a text, or "
                "give T too"
            )
        aligned = dict(align_positions(self.model, model, self.source_prompt))
        if position not in aligned:
            raise PatchscopesError(
                f"no token of {model.cfg.model_name!r} ends where token {position} of {self.model.cfg.model_name!r} "
                f"ends in {self.source_prompt!r}; give T, or another position in S"
            )
        return aligned[position]


def _check_is_text(prompt: Text, word: str) -> str:
    if not isinstance(prompt, str):
        raise PatchscopesError(f"the word {word!r} can be found only in a text: give a number with token ids")
    return prompt


def _describe_prompt(model: LensModel, tokens: Int[Tensor, " pos"], position: int) -> tuple[str, str]:
    """A prompt as text, and a position with its token."""
    texts = decode_each_token(model, tokens)
    return "".join(texts), f"{position} ({texts[position]!r})"


def _describe_layers(layers: Sequence[int]) -> str:
    """Layers as one writes them: 0–29, or one by one."""
    numbers = list(layers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join("embedding" if layer == EMBEDDING else str(layer) for layer in numbers)
