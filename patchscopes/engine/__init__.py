"""From vectors and target layers to what the model says: the rows primitive, whose face is `patchscopes.patch`.

How a row walks from `patch_logits` to a logit: its vector was read by `extract` (from short texts as one sequence,
`packing`), and goes to i* of a `target` prompt. `proof` chooses the engine: plain `hooks`, or `fast` once it has been
proved to do the same (`reference` is what plain hooks compute, `checking` compares the fast engine's blocks with it,
`tolerance` says how near they must be). In `fast` the prompt has been run once (`clean_run`, on the `twin` that
`building` makes of the model); the row joins the batch after its own layer ℓ*, and its tokens see the keys and values
of the shared `prefix`. `unembedding` turns its final residual into logits. To generate, `generation` chooses a token
and `decoding` appends it; `unpatched` does that with no patch at all. `batching` says how many rows run at a time and
halves a batch that is out of memory; `memory` says how much is free, and keeps what is freed; `room` says which models
of the registry fit.

A row that says more (`rows`: several vectors, what sublayers add, edges of attention that are cut, a target prompt of
its own) walks from `patch_rows` in `row_patching`: `row_proof` chooses its engine, plain `row_hooks` (`sublayers` tries
what hooks can do on the model) or the fast `row_walk`. There the clean runs of all prompts are joined (`joint_run`),
and the blocks are run with what the rows do in them (`row_blocks`). `relevancy` says how much of what is generated is
due to it.
"""
