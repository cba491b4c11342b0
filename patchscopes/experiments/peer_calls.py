"""Four ways to sweep a Patchscope over all layers, each as its own users write it: extraction included.

The source prompts' last tokens are read after every block, and written after the same block over one token of the
target prompt (ℓ* = ℓ). A peer is called with texts alone, and does all else itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as find_version
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.benchmark_tasks import FAST
from patchscopes.model.layers import get_hook_name
from patchscopes.model.lens_model import LensModel
from patchscopes.patch import patch_generate, patch_logits

ROWS_AT_A_TIME = 32
# Where families of Hugging Face keep their blocks, and the norm behind the last one.
BLOCKS, FINAL_NORMS = ("layers", "h"), ("norm", "ln_f", "final_layer_norm")


@runtime_checkable
class Peer(Protocol):
    """A library, or published code, that can sweep a Patchscope.

    Attributes:
        name: as the table has it.
        tokenizer: what it cuts texts with, BOS written out in them; None if it reads texts as this library does.
    """

    name: str
    tokenizer: Any

    def sweep(self, sources: Sequence[str], target: str, position: int) -> Float[Tensor, "source layer d_vocab"]:
        """The probabilities of the token after the target prompt, or their logits.

        Args:
            position: i*, counted from the end of the target prompt.
        """

    def generate(
        self, sources: Sequence[str], target: str, position: int, max_new_tokens: int
    ) -> Int[Tensor, "source layer new_token"]:
        """What is said greedily after the target prompt; a row that ends early is padded in the peer's own way."""


class FastEngine:
    """This library."""

    name, tokenizer = FAST, None

    def __init__(self, model: LensModel) -> None:
        self.model = model

    def sweep(self, sources: Sequence[str], target: str, position: int) -> Float[Tensor, "source layer d_vocab"]:
        """See `Peer`."""
        vectors, layers = self._extract(sources)
        logits = patch_logits(TargetPrompt(self.model, target, position), vectors, layers)
        return logits.unflatten(0, (len(sources), -1))

    def generate(
        self, sources: Sequence[str], target: str, position: int, max_new_tokens: int
    ) -> Int[Tensor, "source layer new_token"]:
        """See `Peer`."""
        vectors, layers = self._extract(sources)
        prompt = TargetPrompt(self.model, target, position)
        return patch_generate(prompt, vectors, layers, max_new_tokens=max_new_tokens).unflatten(0, (len(sources), -1))

    def _extract(self, sources: Sequence[str]) -> tuple[Float[Tensor, "row d_model"], list[int]]:
        vectors = extract_representations(self.model, sources, [-1] * len(sources)).flatten(0, 1)
        return vectors, list(range(self.model.cfg.n_layers)) * len(sources)


class TransformerLensHooks:
    """TransformerLens's own `run_with_cache`, and hooks on batches of rows."""

    name, tokenizer = f"TransformerLens hooks, batches of {ROWS_AT_A_TIME}", None

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def sweep(self, sources: Sequence[str], target: str, position: int) -> Float[Tensor, "source layer d_vocab"]:
        """See `Peer`."""
        answers = [
            self.model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].clone()
            for tokens, hooks in self._list_batches(sources, target, position)
        ]
        return torch.cat(answers).unflatten(0, (len(sources), -1))

    @torch.no_grad()
    def generate(
        self, sources: Sequence[str], target: str, position: int, max_new_tokens: int
    ) -> Int[Tensor, "source layer new_token"]:
        """See `Peer`."""
        answers = []
        for tokens, hooks in self._list_batches(sources, target, position):
            with self.model.hooks(fwd_hooks=hooks):
                said = self.model.generate(
                    tokens, max_new_tokens=max_new_tokens, do_sample=False, verbose=False, return_type="tokens"
                )
            answers.append(pad_to(said[:, tokens.shape[1] :], max_new_tokens))
        return torch.cat(answers).unflatten(0, (len(sources), -1))

    def _list_batches(
        self, sources: Sequence[str], target: str, position: int
    ) -> Iterator[tuple[Int[Tensor, "row pos"], list[tuple[str, Callable[..., Tensor]]]]]:
        """The target prompt for some rows at a time, and the hooks that patch them."""
        tokens = self.model.to_tokens(list(sources), padding_side="right")
        ends = [self.model.to_tokens(source).shape[1] - 1 for source in sources]
        _, cache = self.model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_resid_post"))
        n_layers = self.model.cfg.n_layers
        read = [cache[get_hook_name(layer)][range(len(sources)), ends] for layer in range(n_layers)]
        states = torch.stack(read, dim=1).flatten(0, 1)
        target_tokens = self.model.to_tokens(target)

        def writing(rows: list[int], vectors: Float[Tensor, "row d_model"]) -> Callable[..., Tensor]:
            def write(residual: Float[Tensor, "row pos d_model"], hook: Any) -> Float[Tensor, "row pos d_model"]:
                # Generated tokens run alone.
                if residual.shape[1] == target_tokens.shape[1]:
                    residual[rows, position] = vectors
                return residual

            return write

        for first in range(0, len(states), ROWS_AT_A_TIME):
            some = range(first, min(first + ROWS_AT_A_TIME, len(states)))
            by_layer: dict[int, list[int]] = {}
            for row in some:
                by_layer.setdefault(row % n_layers, []).append(row - first)
            hooks = [
                (get_hook_name(layer), writing(rows, states[[first + row for row in rows]]))
                for layer, rows in by_layer.items()
            ]
            yield target_tokens.expand(len(some), -1), hooks


class PaperLoop:
    """The batched loop of the paper's published code (PAIR's `patchscopes/code`), written from its description.

    The hidden states that Hugging Face gives out are cached; then, for each layer, a forward hook on the block writes
    the states of all source prompts into a batch of target prompts. What is given out for the last layer has passed
    the final norm, so this is left out where such a state is written.
    """

    name = "the paper's loop, layer by layer"

    def __init__(self, hf_model: Any, tokenizer: Any) -> None:
        self.hf_model, self.tokenizer = hf_model, tokenizer
        base = hf_model.base_model
        self.blocks = find_module(base, BLOCKS)
        self.final_norm = find_module(base, FINAL_NORMS)

    @classmethod
    def load(cls, folder: str, dtype: torch.dtype) -> "PaperLoop":
        """With a model of its own."""
        hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return cls(hf_model, AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def sweep(self, sources: Sequence[str], target: str, position: int) -> Float[Tensor, "source layer d_vocab"]:
        """See `Peer`."""
        tokens = self._repeat(target, len(sources))
        answers = []
        for layer, states in enumerate(self._cache_states(sources)):
            with self._patched(layer, position, states):
                answers.append(self.hf_model(input_ids=tokens).logits[:, -1].clone())
        return torch.stack(answers, dim=1)

    @torch.no_grad()
    def generate(
        self, sources: Sequence[str], target: str, position: int, max_new_tokens: int
    ) -> Int[Tensor, "source layer new_token"]:
        """See `Peer`."""
        tokens = self._repeat(target, len(sources))
        answers = []
        for layer, states in enumerate(self._cache_states(sources)):
            with self._patched(layer, position, states):
                said = self.hf_model.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.eos_token_id,
                )
            answers.append(pad_to(said[:, tokens.shape[1] :], max_new_tokens))
        return torch.stack(answers, dim=1)

    def _cache_states(self, sources: Sequence[str]) -> list[Float[Tensor, "source d_model"]]:
        given = self.tokenizer(list(sources), padding=True, padding_side="right", return_tensors="pt")
        tokens, mask = given["input_ids"], given["attention_mask"]
        hidden_states = self.hf_model(input_ids=tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        ends = mask.sum(dim=1) - 1
        return [states[range(len(sources)), ends] for states in hidden_states[1:]]

    def _repeat(self, target: str, n_rows: int) -> Int[Tensor, "row pos"]:
        return self.tokenizer([target], return_tensors="pt")["input_ids"].expand(n_rows, -1)

    @contextmanager
    def _patched(self, layer: int, position: int, states: Float[Tensor, "source d_model"]) -> Iterator[None]:
        def write(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            # Generated tokens run alone.
            if hidden.shape[1] > 1:
                hidden[:, position] = states

        written_after = self.final_norm if layer == len(self.blocks) - 1 else self.blocks[layer]
        handle = written_after.register_forward_hook(write)
        try:
            yield
        finally:
            handle.remove()


class Nnterp:
    """nnterp's `patchscope_lens` and `patchscope_generate`, on nnsight."""

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        # Only where `make bench-peers` has put it.
        from nnterp import StandardizedTransformer

        self.name = f"nnterp {find_version('nnterp')} on nnsight {find_version('nnsight')}"
        self.model = StandardizedTransformer(folder, dtype=dtype, device_map="cpu")
        self.tokenizer = self.model.tokenizer

    def sweep(self, sources: Sequence[str], target: str, position: int) -> Float[Tensor, "source layer d_vocab"]:
        """See `Peer`."""
        from nnterp.interventions import TargetPrompt as NnterpPrompt
        from nnterp.interventions import patchscope_lens

        return patchscope_lens(self.model, list(sources), NnterpPrompt(target, position))

    def generate(
        self, sources: Sequence[str], target: str, position: int, max_new_tokens: int
    ) -> Int[Tensor, "source layer new_token"]:
        """See `Peer`. (It finds the states of no layers but all, or the first ones.)"""
        from nnterp.interventions import TargetPrompt as NnterpPrompt
        from nnterp.interventions import patchscope_generate

        said = patchscope_generate(self.model, list(sources), NnterpPrompt(target, position), max_length=max_new_tokens)
        n_tokens = len(self.tokenizer(target)["input_ids"])
        return torch.stack([pad_to(said[layer][:, n_tokens:], max_new_tokens) for layer in sorted(said)], dim=1)


def find_module(base: nn.Module, names: Sequence[str]) -> Any:
    """The first of these submodules that there is.

    Raises:
        PatchscopesError: there is none.
    """
    found = next((name for name in names if hasattr(base, name)), None)
    if found is None:
        raise PatchscopesError(
            f"a {type(base).__name__} has none of the modules {', '.join(names)}, which the paper's loop hooks; "
            "compare the peers on a model of another family, such as Llama's"
        )
    return getattr(base, found)


def pad_to(tokens: Int[Tensor, "row some"], n_tokens: int) -> Int[Tensor, "row n_tokens"]:
    """Generations that all ended early, as long as others: with their last token again, which ends them."""
    return torch.cat([tokens, tokens[:, -1:].expand(-1, n_tokens - tokens.shape[1])], dim=1)
