"""Names that a tiny random model "knows": their keywords are words that it says for their states."""

import re

from made_up_questions import NAMES

from patchscopes.data.entities import Entity
from patchscopes.data.templates import Template
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_choices import build_source
from patchscopes.experiments.layer_grid_classes import find_keywords, select_keywords
from patchscopes.experiments.layer_grid_patching import build_target, say_states

TEMPLATES = (
    Template(name="identity", family="patchscope", prompt="cat -> cat\nx", placeholder="x"),
    Template(name="is", family="minimal", prompt="A x is", placeholder="x"),
    Template(name="colon", family="minimal", prompt="x:", placeholder="x"),
    Template(name="user", family="chat", prompt="What is x known for", placeholder="x"),
)


def make_names(model, n_names: int = 8) -> tuple[Entity, ...]:
    """Names with two keywords each, which their states at the last layer make the model say in the first template."""
    target = build_target(model, TEMPLATES[0])
    last = model.cfg.n_layers - 1
    sources = [build_source(Entity(name=name, references=("made up",))) for name in NAMES]
    texts = say_states(target, sources, [last], [0], LayerGridConfig(max_new_tokens=12))
    entities = []
    for source, text in zip(sources, texts, strict=True):
        words = tuple(dict.fromkeys(re.findall(r"[^\W\d_]+", text[0][0])))
        entity = Entity(name=source.name, references=("made up",), keywords=words[:2])
        if len(select_keywords(entity)) == 2 and len(find_keywords(text[0][0], words[:2])) == 2:
            entities.append(entity)
    assert len(entities) >= n_names
    return tuple(entities[:n_names])
