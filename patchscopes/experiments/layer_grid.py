"""Layer grids: from which layer, into which layer and by which template a model says what it knows of a name.

The state of the name's last token at ℓ is written over the placeholder of a template at ℓ*, and what the model says
then is classed by the facts (keywords) that it names: strong, partial or failed. A mode is one grid or several: `quick`
(four pairs), `targeted`, `templates` (all of them), `patchscope` (those of one family), `multi` (several names), and
`comprehensive`: some pairs, then all around the best, then other templates and names there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from patchscopes.data.templates import CHAT, Template, find_template
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.chunks import Progress, sum_timing
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_choices import ChosenNames, Source
from patchscopes.experiments.layer_grid_classes import STRONG
from patchscopes.experiments.layer_grid_consistency import measure_consistency
from patchscopes.experiments.layer_grid_layers import choose_layers, find_best_pair, find_neighbours
from patchscopes.experiments.layer_grid_measures import (
    average_others,
    classify_states,
    classify_unpatched,
    measure_grid,
    select_own,
)
from patchscopes.experiments.layer_grid_patching import Grid, build_target, describe_grid, describe_source, say_grid
from patchscopes.model.layer_names import thin_out
from patchscopes.model.lens_model import LensModel
from patchscopes.prompts import NO_CHAT, ChatForm
from patchscopes.results import ChunkStore, Json


def run(
    model: LensModel,
    names: ChosenNames,
    templates: Sequence[Template],
    config: LayerGridConfig,
    store: ChunkStore,
    *,
    progress: Progress = iter,
) -> tuple[Json, Json]:
    """Run the experiment, going on from the chunks in `store`.

    Args:
        names: of `choose_names`.
        templates: of `choose_templates`; those of the family `chat` are left out, and reported, where others are left
            and the model has no chat template.
        progress: wraps the iteration over chunks of each grid, `tqdm` for instance.

    Returns:
        the `results` and the `timing` of the result file. `results["grids"]` has every grid with every generation.

    Raises:
        PatchscopesError: a layer does not exist, or a template does not suit the model.
    """
    usable, left_out = divide_templates(model, templates, config.chat)
    study = _Study(model=model, config=config, store=store, progress=progress)
    layers, target_layers = choose_layers(model, config)
    if config.mode == "comprehensive":
        grids = _run_comprehensive(study, names, usable, layers, target_layers)
    else:
        asked = names.several if names.source is None else (names.source,)
        grids = [study.measure(config.mode, asked, names.others, usable, layers, target_layers)]
    results = {
        "mode": config.mode,
        "n_layers": model.cfg.n_layers,
        "source": None if names.source is None else describe_source(names.source),
        "left_out": left_out,
        "grids": [grid.found for grid in grids],
    }
    return results, sum_timing([chunk for grid in grids for chunk in grid.finished])


def divide_templates(
    model: LensModel, templates: Sequence[Template], chat: ChatForm = NO_CHAT
) -> tuple[tuple[Template, ...], list[Json]]:
    """The templates that suit the model; and the chats that do not, each with the reason, where others are left.

    Raises:
        PatchscopesError: none is left, or one of another family does not suit the model.
    """
    usable, left_out = [], []
    for template in templates:
        try:
            build_target(model, template, chat)
        except PatchscopesError as error:
            if template.family != CHAT or all(other.family == CHAT for other in templates):
                raise
            left_out.append({"template": template.name, "reason": str(error)})
        else:
            usable.append(template)
    return tuple(usable), left_out


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """A grid: what the result file has of it, its classes, and its chunks."""

    found: Json
    classes: Int[np.ndarray, "template name state layer target_layer"]
    finished: list[Json]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Study:
    """What all grids of one run have in common."""

    model: LensModel
    config: LayerGridConfig
    store: ChunkStore
    progress: Progress

    def measure(
        self,
        stage: str,
        asked: Sequence[Source],
        others: Sequence[Source],
        templates: Sequence[Template],
        layers: Sequence[int],
        target_layers: Sequence[int],
    ) -> _Measured:
        """One grid, with all that is reported of it."""
        grid = Grid(
            stage=stage,
            asked=tuple(asked),
            others=tuple(others),
            templates=tuple(templates),
            layers=tuple(layers),
            target_layers=tuple(target_layers),
        )
        said = say_grid(self.model, grid, self.config, self.store, self.progress)
        classes = classify_states(said.texts, grid.asked)
        unpatched = classify_unpatched(said.unpatched, grid.asked)
        own = select_own(classes)
        measures = measure_grid(
            classes, unpatched, grid.layers, grid.target_layers, self.model.cfg.n_layers, self.config.seed
        )
        found = (
            describe_grid(self.model, grid, self.config.chat) | measures | {"consistency": _compare_grids(grid, own)}
        )
        found |= {
            "classes": own.tolist(),
            "texts": said.texts,
            "unpatched_classes": unpatched.tolist(),
            "unpatched_texts": said.unpatched,
        }
        return _Measured(found=found, classes=classes, finished=said.finished)


def _compare_grids(grid: Grid, own: Int[np.ndarray, "template name layer target_layer"]) -> Json:
    """The consistency over names, or over templates; None where there is one of each."""
    if len(grid.asked) > 1:
        labels, compared = [source.entity.name for source in grid.asked], own[0]
    else:
        labels, compared = [template.name for template in grid.templates], own[:, 0]
    if len(labels) < 2:
        return None
    return measure_consistency(compared, labels, grid.layers, grid.target_layers)


def _run_comprehensive(
    study: _Study,
    names: ChosenNames,
    templates: Sequence[Template],
    layers: Sequence[int],
    target_layers: Sequence[int],
) -> list[_Measured]:
    """The name at some pairs, then at all around the best, then all templates and several names there.

    With the full grid, and where nothing is found, all are measured at the same layers.
    """
    assert names.source is not None
    one = [find_template(templates, study.config.template)]
    first = study.measure("targeted", [names.source], names.others, one, layers, target_layers)
    grids = [first]
    near, target_near = list(layers), list(target_layers)
    best = None if study.config.full_grid else _find_best_pair(first)
    if best is not None:
        near, target_near = find_neighbours(layers, best[0]), find_neighbours(target_layers, best[1])
        grids.append(study.measure("neighbourhood", [names.source], names.others, one, near, target_near))

    def thin(n_layers: int) -> tuple[list[int], list[int]]:
        if study.config.full_grid:
            return near, target_near
        return thin_out(near, n_layers), thin_out(target_near, n_layers)

    some = thin(len(LayerGridConfig.TEMPLATE_SHARES))
    grids.append(study.measure("templates", [names.source], names.others, templates, *some))
    grids.append(study.measure("multi", names.several, [], one, *thin(len(LayerGridConfig.SHARES))))
    return grids


def _find_best_pair(grid: _Measured) -> tuple[int, int] | None:
    """The row and column at which the name's own state does best beside others: among hotspots, if there are any."""
    score = select_own(grid.classes).mean(axis=(0, 1)) / STRONG
    others = average_others(grid.classes.mean(axis=0) / STRONG)
    if len(others) > 0:
        score = score - others.mean(axis=0)
    layers, target_layers = grid.found["layers"], grid.found["target_layers"]
    hotspots = [
        (layers.index(pair["layer"]), target_layers.index(pair["target_layer"]))
        for pair in grid.found["hotspots"]["pairs"]
    ]
    return find_best_pair(score, hotspots)
