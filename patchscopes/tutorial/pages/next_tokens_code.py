"""Python that does what the page on next tokens does, with what the reader has chosen: it runs as it stands."""

from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.tutorial.state import DEFAULT_PROMPT, Choice


def write_code(choice: Choice | None, lens: str, *, imports: str = "", learning: str = "", mapping: str = "") -> str:
    """Code that reads the reader's states by an original lens and by its Patchscope, and compares them.

    Args:
        choice: None for the start page's example.
        lens: the lens's name in `patchscopes`.
        imports, learning: lines that import and learn what both need.
        mapping: f, as one more argument of both; none for the identity.
    """
    return f"""
from patchscopes import {lens}, load_model, source_patchscope
{imports}from patchscopes.engine.extract import extract_representations

{write_inputs(choice)}
{learning}states = extract_representations(model, [prompt], [position], layers)[0]
original = {lens}(model{mapping})(states, layers)
# T = S up to i, i* = i, ℓ* = the last layer.
patched = source_patchscope(model, prompt, position{mapping})(states, layers)
for layer, logits in zip(layers, patched):
    print(layer, repr(model.tokenizer.decode(logits.argmax())))
print("largest difference of any logit:", float((patched - original).abs().max()))
"""


def write_affine_code(
    choice: Choice | None, module: str, learn: str, *, takes: str, fitted: str = "", chosen: str = ""
) -> str:
    """The same for a lens with maps to the last layer.

    Args:
        module, learn: the function of `patchscopes.learned` that learns the maps.
        takes: how long.
        fitted, chosen: more arguments of the learning, and of the choice among the maps.
    """
    imports = f"""from patchscopes.data.texts import load_texts
from patchscopes.learned.{module} import {learn}
from patchscopes.learned.mappings import LayerMapping
"""
    learning = f"""maps = {learn}(model, load_texts(split="train"){fitted})  # {takes}, once
f = LayerMapping.to_last(model, maps{chosen})
"""
    return write_code(choice, "AffineLens", imports=imports, learning=learning, mapping=", f")


def write_prompt_code(choice: Choice | None, target_prompt: str, placeholder: str | None) -> str:
    """Code that writes the reader's states into a target prompt, at its placeholder or else at its last token."""
    target_position = "" if placeholder is None else f", target_position={placeholder!r}"
    return f"""
from patchscopes import Patchscope, load_model

{write_inputs(choice)}
patchscope = Patchscope(
    model=model, source_prompt=prompt, source_position=position, source_layers=layers,
    target_prompt={target_prompt!r}{target_position},
)
for layer, likely, text in zip(layers, patchscope.top_k(3), patchscope.generate(5)):
    print(layer, [token for token, _ in likely], repr(text))
by_hooks = patchscope.logits(engine="hooks")
print("plain hooks differ by at most", float((patchscope.logits() - by_hooks).abs().max()))
"""


def write_inputs(choice: Choice | None) -> str:
    """The lines that say what the reader has chosen."""
    if choice is None:
        name, prompt, position, layers = EMBEDDED_MODEL, DEFAULT_PROMPT, -1, "range(model.cfg.n_layers)"
    else:
        name, prompt, position = choice.model, choice.source_prompt, choice.source_position
        layers = f"range({choice.layers[0]}, {choice.layers[-1] + 1})"
    return f"""model = load_model({name!r})
prompt, position, layers = {prompt!r}, {position}, list({layers})"""
