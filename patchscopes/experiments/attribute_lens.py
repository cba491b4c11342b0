"""The Attribute Lens (Hernandez et al. 2023): what one relation's LRE reads at every token and layer of a text.

Whatever the text is about, the lens asks for the relation: it shows where a state already holds the attribute.
"""

import torch

from patchscopes.baselines import AffineLens
from patchscopes.data.relations import Relation
from patchscopes.engine.extract import extract_representations
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.attribute_samples import draw_examples, find_known, select_known
from patchscopes.experiments.chunks import Progress
from patchscopes.experiments.config import AttributesConfig
from patchscopes.learned.cached_fits import fit_or_load_lre
from patchscopes.model.layers import resolve_layers
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json
from patchscopes.tokens import decode_each_token, to_token_ids


@torch.no_grad()
def run(model: LensModel, relation: Relation, text: str, config: AttributesConfig, progress: Progress = iter) -> Json:
    """The `results` of the result file: the most likely token and its probability, by layer and token of the text.

    The LRE is estimated from `n_examples` subjects that the model knows, drawn by the seed.

    Args:
        progress: wraps the iterations over examples and over tokens, `tqdm` for instance.

    Raises:
        PatchscopesError: a layer does not exist, or the model knows too few subjects.
    """
    layers = resolve_layers(model, config.layers)
    known = select_known(relation, find_known(model, relation, config))
    if len(known) < config.n_examples:
        raise PatchscopesError(
            f"{model.cfg.model_name!r} knows {len(known)} subjects of {relation.name!r}, and the LRE is estimated from "
            f"{config.n_examples}: give another relation, or fewer examples"
        )
    examples = draw_examples(known, config)
    lre = fit_or_load_lre(model, relation, examples, layers, progress=progress)
    lens = AffineLens(model, lre.mapping(model))
    tokens = to_token_ids(model, config.chat.of_source(text))
    positions = range(len(tokens))
    states = extract_representations(model, [tokens] * len(tokens), positions, layers)
    numbers = torch.tensor(layers, device=states.device)
    top: list[list[str]] = []
    probabilities: list[list[float]] = []
    for of_token in progress(states):
        likely = torch.softmax(lens(of_token, numbers).float(), dim=-1).max(dim=-1)
        top.append(decode_each_token(model, likely.indices))
        probabilities.append(likely.values.tolist())
    return {
        "layers": layers,
        "relation": relation.name,
        "prompt": relation.prompt,
        "examples": [sample.subject for sample in examples],
        "tokens": decode_each_token(model, tokens),
        "top": [list(of_layer) for of_layer in zip(*top, strict=True)],
        "probability": [list(of_layer) for of_layer in zip(*probabilities, strict=True)],
    }
