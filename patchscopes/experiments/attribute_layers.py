"""One subject: what the model says of its attribute in clear, unpatched, and patched at each pair (ℓ, ℓ*)."""

from collections.abc import Callable

from patchscopes.data.questions import contains_answer
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.unpatched import generate_after
from patchscopes.experiments.attribute_patching import build_attribute_target, generate_patched, stop_at_answers
from patchscopes.experiments.attribute_samples import find_subject_tokens
from patchscopes.experiments.attributes import resolve_layer_grid
from patchscopes.experiments.config import AttributesConfig
from patchscopes.model.lens_model import LensModel
from patchscopes.results import Json


def run(
    model: LensModel,
    relation: Relation,
    sample: RelationSample,
    source_prompt: str,
    config: AttributesConfig,
    show_unpatched: Callable[[str, str, bool], None],
    show_layer: Callable[[int, list[str], list[bool]], None],
) -> Json:
    """The `results` of the result file, with tables [ℓ][ℓ*] of what was said and whether that is the object.

    Args:
        sample: the subject, with an object to mark or with "" for none.
        source_prompt: S, in which the subject stands.
        show_unpatched: is given `in_clear` (the phrase with the subject) or `unpatched` (with the x), what was said,
            and whether that is the object.
        show_layer: is given a source layer, and the same for each target layer, as soon as it is there.

    Raises:
        PatchscopesError: a layer does not exist, or the subject does not stand in S.
    """
    layers, target_layers = resolve_layer_grid(model, config)
    target = build_attribute_target(model, relation, config.chat)
    source = config.chat.of_source(source_prompt)
    _, position = find_subject_tokens(model, source, sample.subject)
    states = extract_representations(model, [source], [position], layers)
    methods: Json = {}
    in_clear = config.chat.of_target(relation.fill(sample.subject))
    for method, prompt in (("in_clear", in_clear), ("unpatched", target.tokens)):
        tokens = generate_after(model, [prompt], max_new_tokens=config.max_new_tokens)
        (text,) = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        methods[method] = {"text": text, "solved": int(contains_answer(text, sample.accepted))}
        show_unpatched(method, text, bool(methods[method]["solved"]))
    stop = stop_at_answers(model, [sample], [False], len(target_layers))
    texts, solved = [], []
    for slot, layer in enumerate(layers):
        ((of_layer,),) = generate_patched(target, states[:, slot : slot + 1], target_layers, config, stop)
        is_right = [contains_answer(text, sample.accepted) for text in of_layer]
        texts.append(of_layer)
        solved.append(list(map(int, is_right)))
        show_layer(layer, of_layer, is_right)
    return {
        "layers": layers,
        "target_layers": target_layers,
        "relation": relation.name,
        "prompt": relation.prompt,
        "subject": sample.subject,
        "object": sample.object,
        "source_prompt": source_prompt,
        "methods": methods | {"patchscope": {"texts": texts, "solved": solved}},
    }
