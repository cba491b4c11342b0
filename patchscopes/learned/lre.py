"""Linear relational embeddings (LRE; Hernandez et al. 2023, arXiv 2308.09124): a relation as an affine map, per layer.

A subject's representation s at layer ℓ decides, through all the blocks above, the representation o from which its
object is predicted. For one relation that function is close to s ↦ β W s + b, where W is the mean of ∂o/∂s over a few
subjects and b the mean of o - W s: its first-order expansion, with β to make up for a W that comes out too small. The
module `low_rank` goes the other way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchscopes.data.relations import PLACE, Relation, RelationSample
from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.engine.proof import Engine
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.estimating.tally import do_some
from patchscopes.learned.files import load_tensors, save_tensors
from patchscopes.learned.mappings import AffineMap, LayerMapping, MapKey
from patchscopes.learned.provenance import Provenance, describe_provenance
from patchscopes.model.devices import require_memory_for_layers
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.positions import find_first_tokens, find_substring_token_position

# What β is chosen from: half of W to five times W.
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
ESTIMATOR = "lre"


@dataclass(frozen=True, kw_only=True, eq=False)
class LRE:
    """The linear relational embedding of one relation at each of some layers: s ↦ β W s + b.

    It stays on the CPU, in float32, as affine maps do.

    Attributes:
        layers: ℓ.
        weights: W, the mean of ∂o/∂s.
        biases: b.
        betas: β, chosen for each ℓ.
    """

    layers: tuple[int, ...]
    weights: Float[Tensor, "layer d_model d_model"]
    biases: Float[Tensor, "layer d_model"]
    betas: Float[Tensor, " layer"]
    provenance: Provenance

    def mapping(self, model: LensModel) -> LayerMapping:
        """The f of the LRE Attribute Lens, from each ℓ to the last layer: for `AffineLens`, and any Patchscope.

        Raises:
            PatchscopesError: it was fitted on another model.
        """
        last = model.cfg.n_layers - 1
        keys = [MapKey(layer, last) for layer in self.layers]
        maps = {
            key: AffineMap(weight=beta * weight, bias=bias, key=key, provenance=self.provenance)
            for key, beta, weight, bias in zip(keys, self.betas, self.weights, self.biases, strict=True)
        }
        return LayerMapping.to_last(model, maps)

    def save(self, path: Path) -> None:
        """Write it with its provenance as safetensors, atomically.

        Raises:
            PatchscopesError: the folder cannot be written to.
        """
        tensors = {"weights": self.weights, "biases": self.biases, "betas": self.betas}
        save_tensors(path, tensors | {"layers": torch.tensor(self.layers)}, self.provenance)

    @classmethod
    def load(cls, path: Path) -> "LRE":
        """Read what `save` wrote.

        Raises:
            PatchscopesError: no such file, or one that holds no LRE.
        """
        tensors, made = load_tensors(path)
        if made.estimator != ESTIMATOR or set(tensors) != {"weights", "biases", "betas", "layers"}:
            raise PatchscopesError(
                f"{path} holds no LRE but something learned by {made.estimator!r}; give one of LRE.save"
            )
        return cls(layers=tuple(tensors.pop("layers").tolist()), provenance=made, **tensors)


def build_lre_prompt(relation: Relation, examples: Sequence[RelationSample], subject: str) -> str:
    """Solved examples of a relation, one on a line, and then the relation of `subject` for the model to go on with."""
    solved = [f"{relation.fill(one.subject)}{relation.cue} {one.object}" for one in examples]
    return "\n".join([*solved, f"{relation.fill(subject)}{relation.cue}"])


def find_subject_position(model: LensModel, relation: Relation, prompt: str) -> int:
    """The last token of the subject that a prompt of `build_lre_prompt` asks about.

    Raises:
        PatchscopesError: the prompt does not end as the relation's do, or no token stands for the subject.
    """
    tail = relation.prompt.rpartition(PLACE)[2] + relation.cue
    if not prompt.endswith(tail):
        raise PatchscopesError(
            f"found no subject before {tail!r} at the end of {prompt!r}; build it with build_lre_prompt"
        )
    return find_substring_token_position(model, prompt, prompt[: len(prompt) - len(tail)])


def build_training_prompts(relation: Relation, train: Sequence[RelationSample]) -> TextSet:
    """For each training sample the others as solved examples, and then its own subject.

    Raises:
        PatchscopesError: fewer than two samples.
    """
    if len(train) < 2:
        raise PatchscopesError(
            f"an LRE of {relation.name!r} is learned from samples that are one another's examples: got {len(train)}, "
            "give at least 2"
        )
    others = [[*train[:number], *train[number + 1 :]] for number in range(len(train))]
    prompts = [build_lre_prompt(relation, some, own.subject) for some, own in zip(others, train, strict=True)]
    return TextSet(relation.name, "train", tuple(prompts))


def describe_fit(
    relation: Relation, train: Sequence[RelationSample], layers: Sequence[int], betas: Sequence[float]
) -> dict[str, Any]:
    """The `options` of an LRE's provenance: all that decides it beside the model and the prompts."""
    return {
        "prompt": relation.prompt,
        "train": [[sample.subject, *sample.accepted] for sample in train],
        "layers": list(layers),
        "betas": list(betas),
    }


@torch.no_grad()
def fit_lre(
    model: LensModel,
    relation: Relation,
    train: Sequence[RelationSample],
    layers: Sequence[int] | None = None,
    *,
    betas: Sequence[float] = BETAS,
    engine: Engine = "auto",
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> LRE:
    """The LRE of a relation from each of `layers` (all blocks unless given), from a few samples of it.

    s is the representation of the subject's last token, o that of the prompt's last token after the last block; see
    `build_training_prompts`. β is chosen for each ℓ by leave-one-out: the map of the other samples must find the object
    of each (see `choose_betas`).

    Args:
        betas: to choose from.
        engine: as for `compute_jacobians`.
        progress: wraps the iteration over samples, `tqdm` for instance.

    Raises:
        PatchscopesError: fewer than two samples, no β, a layer that does not exist, a prompt that does not fit the
            model's context, or Jacobians that need clearly more memory than there is.
    """
    layers = resolve_layers(model, layers)
    if not betas:
        raise PatchscopesError("no β to choose from; give at least one")
    require_memory_for_layers(
        f"the Jacobians of width {model.cfg.d_model}",
        len(layers),
        # Of a sample, as a part of the mean, and the mean.
        3 * 4 * model.cfg.d_model**2,
        "cpu",
        "fit on a machine with more memory",
    )
    texts = build_training_prompts(relation, train)
    positions = [find_subject_position(model, relation, prompt) for prompt in texts.texts]
    subjects = extract_representations(model, texts.texts, positions, layers).float()

    width = model.cfg.d_model
    weights = torch.zeros(len(layers), width, width)
    products: list[Float[Tensor, "sample layer d_model"]] = []
    outputs: list[Float[Tensor, " d_model"]] = []
    for prompt, position in do_some(list(zip(texts.texts, positions, strict=True)), progress):
        computed = compute_jacobians(model, prompt, position, layers, engine=engine)
        jacobians = computed.jacobians.float()
        weights += jacobians.cpu() / len(train)
        products.append(torch.einsum("lij,klj->kli", jacobians, subjects))
        outputs.append(computed.output.float())
    # All of them, but while an estimate is made.
    train = train[: len(outputs)]
    # products[j, k] is W_j s_k.
    applied, output = torch.stack(products)[:, : len(outputs)], torch.stack(outputs)
    own = applied.diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    options = describe_fit(relation, train, layers, betas)
    return LRE(
        layers=tuple(layers),
        weights=weights,
        biases=(output[:, None] - own).mean(dim=0).cpu(),
        betas=choose_betas(model, train, applied, output, betas).cpu(),
        provenance=describe_provenance(ESTIMATOR, model, texts, len(train), options),
    )


def choose_betas(
    model: LensModel,
    train: Sequence[RelationSample],
    applied: Float[Tensor, "sample subject layer d_model"],
    outputs: Float[Tensor, "sample d_model"],
    betas: Sequence[float],
) -> Float[Tensor, " layer"]:
    """The β of each layer with which the map of the other samples finds the first token of most samples' objects.

    Of equally good ones that which makes these tokens most likely (mean of the log-probabilities), then the smallest.

    Args:
        applied: W_j s_k.
        outputs: o_j.
    """
    candidates = sorted(set(betas))
    right, log_probability = torch.zeros(2, len(candidates), applied.shape[2], dtype=torch.float64)
    for number, sample in enumerate(train):
        others = [other for other in range(len(train)) if other != number]
        linear = applied[others, number].mean(dim=0)
        constant = (outputs[others, None] - applied[others, others]).mean(dim=0)
        first = find_first_tokens(model, sample.accepted)
        for slot, beta in enumerate(candidates):
            # In the type of the model, as the lens has it.
            logits = logit_lens(model, (beta * linear + constant).to(model.cfg.dtype)).float()
            right[slot] += torch.isin(logits.argmax(dim=-1), first).cpu()
            log_probability[slot] += torch.log_softmax(logits, dim=-1)[:, first].logsumexp(dim=-1).cpu() / len(train)
    return torch.tensor(
        [
            candidates[max(range(len(candidates)), key=lambda slot: (scores[0][slot], scores[1][slot]))]
            for scores in zip(right.T.tolist(), log_probability.T.tolist(), strict=True)
        ]
    )
