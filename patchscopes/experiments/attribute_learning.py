"""What other subjects of a relation teach: an LRE and probes with which one subject's attribute is read.

A relation's subjects are dealt into two halves. A subject of one half is read with what was learned from the other one,
so nothing is ever tested on what it was learned from, and each relation is learned at most twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.attribute_patching import have_different_objects
from patchscopes.experiments.attribute_samples import (
    choose_source_texts,
    draw_examples,
    draw_samples,
    find_known,
    select_known,
)
from patchscopes.experiments.chunks import Progress, split_into_chunks
from patchscopes.experiments.config import AttributesConfig
from patchscopes.learned.cached_fits import fit_or_load_lre
from patchscopes.learned.lre import LRE
from patchscopes.learned.probes import Probes, train_probes
from patchscopes.model.layer_names import EMBEDDING
from patchscopes.model.lens_model import LensModel

# Subjects that are asked for in clear together.
CHUNK_SUBJECTS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Taught:
    """What some subjects of a relation teach.

    Attributes:
        layers: that both were learned at.
        examples: the subjects that the LRE is estimated from.
        subjects: those that the probes are trained on, one for each training sample.
        objects: the answer of each of these samples.
    """

    layers: tuple[int, ...]
    examples: tuple[str, ...]
    lre: LRE
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    probes: Probes


def split_relation(relation: Relation, subject: str, seed: int = 0) -> tuple[Relation, Relation]:
    """The half of a relation that has the subject (the first one where none has), and the half that teaches."""
    order = np.random.default_rng(seed).permutation(len(relation.samples))
    middle = len(order) // 2
    first, second = (
        replace(relation, samples=tuple(relation.samples[number] for number in part))
        for part in (order[:middle], order[middle:])
    )
    return (second, first) if any(one.subject == subject for one in second.samples) else (first, second)


def find_other_subject(relation: Relation, sample: RelationSample, seed: int = 0) -> str | None:
    """A subject of the same half with another object, whose state is the control; None where there is none."""
    own, _ = split_relation(relation, sample.subject, seed)
    return next((one.subject for one in own.samples if have_different_objects(one, sample)), None)


def learn_from_others(
    model: LensModel,
    relation: Relation,
    subject: str,
    carriers: Mapping[str, Sequence[str]],
    config: AttributesConfig,
    progress: Progress = iter,
) -> Taught:
    """The LRE and the probes of all layers, learned from the half of a relation that has not the subject.

    They are learned as in `attributes`: from subjects that the model knows, the LRE from `n_examples` of them (all
    where there are fewer), the probes from `n_subjects` in `n_prompts` carrier sentences.

    Args:
        carriers: sentences for each kind of subject.
        progress: wraps the iterations over parts of the subjects, over layers and over examples, `tqdm` for instance.

    Raises:
        PatchscopesError: the model knows fewer than two subjects of the half.
    """
    _, teaching = split_relation(relation, subject, config.seed)
    known: list[RelationSample] = []
    for some in progress(split_into_chunks(teaching.samples, CHUNK_SUBJECTS)):
        part = replace(teaching, samples=tuple(some))
        known += select_known(part, find_known(model, part, config))
    if len(known) < 2:
        raise PatchscopesError(
            f"{model.cfg.model_name!r} knows {len(known)} of the {len(teaching.samples)} subjects of {relation.name!r} "
            "that an LRE and a probe would be learned from; give another relation, or a larger model"
        )
    layers = [EMBEDDING, *range(model.cfg.n_layers)]
    source_texts = choose_source_texts(teaching, carriers, None, config)
    samples = draw_samples(model, known, source_texts, config)
    states = extract_representations(
        model, [list(sample.tokens) for sample in samples], [sample.position for sample in samples], layers
    )
    subjects, objects = ([getattr(sample.fact, name) for sample in samples] for name in ("subject", "object"))
    probes = train_probes(states.float().cpu().numpy(), objects, subjects, seed=config.seed, progress=progress)
    examples = draw_examples(known, config)
    return Taught(
        layers=tuple(layers),
        examples=tuple(example.subject for example in examples),
        lre=fit_or_load_lre(model, relation, examples, layers, progress=progress),
        subjects=tuple(subjects),
        objects=tuple(objects),
        probes=probes,
    )
