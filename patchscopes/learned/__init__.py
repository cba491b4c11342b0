"""What is fitted or trained on texts that no evaluation uses; the lenses of `patchscopes.baselines` are made of it.

Texts are read, and the sums over their positions (`least_squares`) give affine `mappings` (`fitting`); or gradient
descent (`training`) makes a Tuned Lens by KL (`tuned_lens`) or a Future Lens's prompt (`future_lens`), held against the
model's own `continuation`. TransformerLens fits the mean Jacobians of the `jacobian_lens`. From a few samples of a
relation, and the Jacobians that the engine computes of them, comes its `lre`, which `low_rank` inverts. `config` has
the default settings. Everything learned carries its `provenance`, and `files` keeps it in the user's cache folder
(`cached_fits`). `probes` alone learn from the samples that they are tested on, and therefore in folds; nothing of them
is kept.
"""
