"""Generating after prompts with nothing patched: the baselines of a generating Patchscope."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from patchscopes.engine import fast, hooks
from patchscopes.engine.batching import check_length, get_row_size, run_in_batches
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.generation import generate
from patchscopes.engine.proof import Engine, choose_engine
from patchscopes.engine.target import TargetPrompt
from patchscopes.given import AnyModel, to_lens_model
from patchscopes.tokens import Text, check_texts, get_end_tokens, to_token_ids


@torch.no_grad()
def generate_after(
    model: AnyModel,
    prompts: Sequence[Text],
    *,
    max_new_tokens: int = 20,
    engine: Engine = "auto",
    batch_size: int | None = None,
) -> Int[Tensor, "prompt new_token"]:
    """What the model says after each prompt, greedily, with nothing patched: the baselines of a generating Patchscope.

    The fast engine runs prompts once as far as they begin alike: the beginning that all share, and then, within a
    batch, each different one, token by token, as if the model had chosen its tokens. A row that has produced an
    end-of-sequence token is padded with it.

    Raises:
        PatchscopesError: a prompt has no room for the new tokens, or the prompts are no list.
    """
    model = to_lens_model(model)
    check_texts(prompts)
    ids = [to_token_ids(model, prompt).tolist() for prompt in prompts]
    if not ids:
        return torch.empty(0, max_new_tokens, dtype=torch.long, device=model.cfg.device)
    n_shared = next((n for n, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), min(map(len, ids)))
    if n_shared == 0:
        # Without a BOS token prompts may have nothing in common: those that do go together.
        out = torch.empty(len(ids), max_new_tokens, dtype=torch.long, device=model.cfg.device)
        for first in sorted({tokens[0] for tokens in ids}):
            alike = [number for number, tokens in enumerate(ids) if tokens[0] == first]
            some = [ids[number] for number in alike]
            out[alike] = generate_after(
                model, some, max_new_tokens=max_new_tokens, engine=engine, batch_size=batch_size
            )
        return out
    endings = [tokens[n_shared:] for tokens in ids]
    longest = max(map(len, endings))
    target = TargetPrompt(model, ids[0][:n_shared], -1)
    check_length(target, longest + max_new_tokens)
    # A state that is written over itself changes nothing; and below the layer of the patch, rows share what they can.
    last = model.cfg.n_layers - 1
    vectors = extract_representations(model, [target.tokens], [-1], [last])[0].expand(len(ids), -1)
    layers = torch.full((len(ids),), last, device=vectors.device)
    padded = [[*tokens, *[-1] * (longest - len(tokens))] for tokens in endings]
    forced = torch.tensor(padded, dtype=torch.long, device=vectors.device)
    chosen = choose_engine(target, engine)
    start_generation = fast.start_generation if chosen == "fast" else hooks.start_generation
    n_new, ends = longest + max_new_tokens, get_end_tokens(model)

    def run(rows: slice) -> Int[Tensor, "batch n_new"]:
        some_vectors = vectors[rows]
        logits, advance = start_generation(target, some_vectors, layers[rows])
        return generate(len(some_vectors), logits, advance, ends, n_new, 0.0, None, forced[rows])

    row_size = get_row_size(target, chosen, n_new, unembedded=0)
    out = torch.empty(len(ids), max_new_tokens, dtype=torch.long, device=vectors.device)
    for rows, said in run_in_batches(model, len(ids), run, row=row_size, batch_size=batch_size):
        for row, tokens, ending in zip(out[rows], said, endings[rows], strict=True):
            row.copy_(tokens[len(ending) : len(ending) + max_new_tokens])
    return out
