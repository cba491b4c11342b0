"""The five choices of the paper as one object: (S, i, M, ℓ) are read, and written, through f, into (T, i*, M*, ℓ*).

It adds no engine: all that it does can be said with `extract_representations` and `patch_logits` or `patch_generate`,
and, where it writes at several positions, `patch_rows` or `generate_rows`.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchscopes.alignment import align_position
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import follow
from patchscopes.engine.proof import Engine
from patchscopes.engine.relevancy import Continuation, describe_relevancy, generate_with_relevancy
from patchscopes.engine.target import TargetPrompt, find_target_positions
from patchscopes.errors import PatchscopesError
from patchscopes.given import AnyModel, AnyNumber, AnyNumbers, to_lens_model
from patchscopes.learned.mappings import LayerMapping, RepresentationMapping, Scaling, norm_matched
from patchscopes.likely_tokens import TokenProbability, check_k, list_likely_tokens
from patchscopes.model.layers import describe_layers, resolve_layers, resolve_target_layers
from patchscopes.patch import Row, Write, generate_rows, patch_generate, patch_logits, patch_rows
from patchscopes.positions import find_substring_token_position
from patchscopes.tokens import (
    Text,
    describe_positions,
    resolve_position,
    to_token_ids,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Patchscope:
    """A Patchscope (Ghandeharioun et al., ICML 2024, section 3), at one or more source layers at once.

    Attributes:
        source_prompt: S: a text, a `Chat`, token ids, or what `tokenizer.apply_chat_template` returns.
        source_position: i, counted from either end, or a word of S (its first occurrence, its last token).
        model: M.
        source_layers: ℓ, one or several; all blocks unless given.
        target_prompt: T, in the same forms; None for T = S.
        target_position: i*, counted from either end, or a word of T (its last occurrence, as of a placeholder; its last
            token). Unless given it is i where T = S, and the last token elsewhere. Several write the same vector at
            each; a word that is given n times stands for its last n occurrences.
        mapping: f, a function of `[row, d_model]`, a LayerMapping, or `norm_matched` without its arguments; several are
            applied one after the other. None for the identity.
        target_model: M*; None for M.
        target_layers: ℓ*: `"same"` (ℓ* = ℓ), `"last"`, `"embedding"`, a number, or one number for each ℓ.

    The representations are read anew by each call. The target prompt's clean run is kept, so make a new object after
    you have changed a model's weights.

    Raises:
        PatchscopesError: a position, word or layer does not exist, or f is missing or does not fit the layers.
    """

    source_prompt: Text
    source_position: AnyNumber | str = -1
    model: AnyModel
    source_layers: AnyNumbers | None = None
    target_prompt: Text | None = None
    target_position: AnyNumbers | str | Sequence[int | str] | None = None
    mapping: RepresentationMapping | Sequence[RepresentationMapping] | None = None
    target_model: AnyModel | None = None
    target_layers: str | AnyNumbers = "same"

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", to_lens_model(self.model))
        if self.target_model is not None:
            object.__setattr__(self, "target_model", to_lens_model(self.target_model))
        # What is wrong is said now, and not when the model runs.
        _, target_model = self.source, self.target.model
        pairs = list(zip(self.resolved_source_layers, self.resolved_target_layers, strict=True))
        by_layer = [f for f in self.mappings if isinstance(f, LayerMapping)]
        if len(by_layer) > 1:
            raise PatchscopesError(
                f"{len(by_layer)} LayerMappings go from ℓ to ℓ*; give one, and any other functions before or after it"
            )
        for f in by_layer:
            f.check_pairs(pairs)
        keep_width = all(f is norm_matched or isinstance(f, Scaling) for f in self.mappings)
        if keep_width and target_model.cfg.d_model != self.model.cfg.d_model:
            raise PatchscopesError(
                f"the target model is {target_model.cfg.d_model} wide and the source model {self.model.cfg.d_model}: "
                "give a mapping between them, such as LayerMapping.between(...)"
            )

    @cached_property
    def source(self) -> tuple[Int[Tensor, " pos"], int]:
        """The tokens of S, and i counted from the start."""
        tokens = to_token_ids(self.model, self.source_prompt)
        if isinstance(self.source_position, str):
            return tokens, find_substring_token_position(self.model, self.source_prompt, self.source_position)
        return tokens, resolve_position(len(tokens), self.source_position)

    @cached_property
    def target(self) -> TargetPrompt:
        """T with i* (the first of several), in the target model."""
        return self._targets[0]

    @property
    def target_positions(self) -> list[int]:
        """Each i*, counted from the start of T."""
        return [target.position for target in self._targets]

    @property
    def mappings(self) -> tuple[RepresentationMapping, ...]:
        """The functions that f consists of, the first one first; none for the identity."""
        if self.mapping is None:
            return ()
        return tuple(self.mapping) if isinstance(self.mapping, Sequence) else (self.mapping,)

    @cached_property
    def resolved_source_layers(self) -> list[int]:
        """Each ℓ, by number."""
        return resolve_layers(self.model, self.source_layers)

    @cached_property
    def resolved_target_layers(self) -> list[int]:
        """ℓ* for each ℓ, by number."""
        return resolve_target_layers(self.target.model, self.resolved_source_layers, self.target_layers)

    @property
    def vectors(self) -> Float[Tensor, "layer d_model"]:
        """What is written at (the first) i*: f of the representation at each ℓ."""
        return self._map(self._read(), self.target)

    @property
    def rows(self) -> list[Row]:
        """One for each ℓ, that writes at each i*: what `patch_rows` takes."""
        representations = self._read()
        if norm_matched in self.mappings:
            vectors = [self._map(representations, target) for target in self._targets]
        else:
            vectors = [self._map(representations, self.target)] * len(self._targets)
        return [
            Row(
                target=self.target,
                writes=tuple(
                    Write(position=target.position, layer=layer, vector=of_position[number])
                    for target, of_position in zip(self._targets, vectors, strict=True)
                ),
            )
            for number, layer in enumerate(self.resolved_target_layers)
        ]

    def logits(self, *, engine: Engine = "auto", batch_size: int | None = None) -> Float[Tensor, "layer d_vocab"]:
        """Logits of the token after T, for each ℓ. Args and errors: as for `patch_logits`."""
        if len(self._targets) > 1:
            return patch_rows(self.rows, engine=engine, batch_size=batch_size)
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
        check_k(self.target.model, k)
        return list_likely_tokens(self.target.model, self.logits(engine=engine, batch_size=batch_size), k)

    @overload
    def generate(
        self,
        max_new_tokens: int = 20,
        *,
        relevancy: Literal[False] = False,
        temperature: float = 0.0,
        engine: Engine = "auto",
        batch_size: int | None = None,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        max_new_tokens: int = 20,
        *,
        relevancy: Literal[True],
        temperature: float = 0.0,
        engine: Engine = "auto",
        batch_size: int | None = None,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> list[Continuation]: ...

    def generate(
        self,
        max_new_tokens: int = 20,
        *,
        relevancy: bool = False,
        temperature: float = 0.0,
        engine: Engine = "auto",
        batch_size: int | None = None,
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> list[str] | list[Continuation]:
        """What the target model says after T, for each ℓ.

        Args:
            relevancy: say of each token too how much of it is due to the patch (SelfIE's relevancy).
            progress: wraps the iteration over new tokens, `tqdm` for instance (with one i* and without relevancy).

        Other args and errors: as for `patch_generate`; the model must have a tokenizer; and with several i*, or
        relevancy, the temperature must be 0.
        """
        model = self.target.model
        if model.tokenizer is None:
            raise PatchscopesError(
                "the target model has no tokenizer to say it in words; patch_generate gives token ids"
            )
        if temperature != 0 and (relevancy or len(self._targets) > 1):
            raise PatchscopesError(
                f"with relevancy, or several i*, only the most likely tokens are generated; the temperature must be 0, "
                f"got {temperature}"
            )
        if relevancy:
            said = generate_with_relevancy(
                self.rows, max_new_tokens=max_new_tokens, engine=engine, batch_size=batch_size
            )
            return describe_relevancy(model, said)
        if len(self._targets) > 1:
            tokens = generate_rows(self.rows, max_new_tokens=max_new_tokens, engine=engine, batch_size=batch_size)
        else:
            tokens = patch_generate(
                self.target,
                self.vectors,
                self.resolved_target_layers,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                engine=engine,
                batch_size=batch_size,
                stop=follow(progress, max_new_tokens),
            )
        continuations: list[str] = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return continuations

    @cached_property
    def _targets(self) -> list[TargetPrompt]:
        """T with each i*, from the first to the last."""
        model = self.target_model or self.model
        prompt = self.source_prompt if self.target_prompt is None else self.target_prompt
        places = self.target_position
        if places is None:
            places = align_position(self.model, model, prompt, self.source[1]) if self.target_prompt is None else -1
        return [TargetPrompt(model, prompt, position) for position in find_target_positions(model, prompt, places)]

    @torch.no_grad()
    def _read(self) -> Float[Tensor, "layer d_source"]:
        """The representation at each ℓ."""
        tokens, position = self.source
        return extract_representations(self.model, [tokens], [position], self.resolved_source_layers)[0]

    @torch.no_grad()
    def _map(
        self, representations: Float[Tensor, "layer d_source"], target: TargetPrompt
    ) -> Float[Tensor, "layer d_model"]:
        """f of the representations, as they are written at this i*."""
        for f in self.mappings:
            if isinstance(f, LayerMapping):
                layers = torch.tensor(self.resolved_source_layers, device=representations.device)
                representations = f(representations, layers)
            elif f is norm_matched:
                representations = norm_matched(target, self.resolved_target_layers)(representations)
            else:
                representations = cast(Callable[[Tensor], Tensor], f)(representations)
        return representations

    def __repr__(self) -> str:
        return f"Patchscope({', '.join(f'{symbol} = {value}' for symbol, value in self.describe())})"

    def _repr_html_(self) -> str:
        """The paper's table of the choices, for a notebook."""
        cells = self.describe()
        heads, values = (
            "".join(f"<{tag} style='text-align: left'>{html.escape(text)}</{tag}>" for text in texts)
            for tag, texts in (("th", [symbol for symbol, _ in cells]), ("td", [value for _, value in cells]))
        )
        return f"<table><tr>{heads}</tr><tr>{values}</tr></table>"

    def describe(self) -> list[tuple[str, str]]:
        """The paper's symbols, and what stands for each of them here."""
        tokens, position = self.source
        source = describe_positions(self.model, tokens, [position])
        target = describe_positions(self.target.model, self.target.tokens, self.target_positions)
        if isinstance(self.target_layers, str):
            target_layers = self.target_layers
        else:
            # One for all is said once.
            different = set(self.resolved_target_layers)
            target_layers = describe_layers(list(different) if len(different) == 1 else self.resolved_target_layers)
        return [
            ("S", source[0]),
            ("i", source[1]),
            ("M", str(self.model.cfg.model_name)),
            ("ℓ", describe_layers(self.resolved_source_layers)),
            ("T", target[0]),
            ("i*", target[1]),
            ("f", ", then ".join(getattr(f, "__name__", type(f).__name__) for f in self.mappings) or "identity"),
            ("M*", str(self.target.model.cfg.model_name)),
            ("ℓ*", target_layers),
        ]
