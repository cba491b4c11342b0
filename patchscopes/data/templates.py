"""Templates of target prompts: what stands around the placeholder that a state is written over."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchscopes.data.files import DATA_FOLDER, read_rows
from patchscopes.errors import PatchscopesError

# A `chat` is the user's message in the model's own chat template.
CHAT = "chat"
FAMILIES = ("patchscope", "few_shot", "contextual", "minimal", CHAT)
TEMPLATES_FILE = DATA_FOLDER / "templates.json"


@dataclass(frozen=True, kw_only=True)
class Template:
    """A target prompt T, and what in it is the placeholder.

    Attributes:
        family: one of `FAMILIES`.
        prompt: T; of a chat, the user's message in it.
        placeholder: stands in the prompt; the last one counts.
        system: the system message of a chat, if it has one of its own.
    """

    name: str
    family: str
    prompt: str
    placeholder: str
    system: str | None = None


def load_templates(path: Path = TEMPLATES_FILE) -> tuple[Template, ...]:
    """The templates of a JSON file: a list of objects with the fields of `Template`.

    Raises:
        PatchscopesError: no such file, no templates, two of one name, or a bad row (the message names it).
    """
    templates: dict[str, Template] = {}
    for row, place in read_rows(path, (".json",), "templates"):
        template = _parse_template(row, place)
        if template.name in templates:
            raise PatchscopesError(f"{place}: another template has the name {template.name!r} already; rename one")
        templates[template.name] = template
    if not templates:
        raise PatchscopesError(f"{path} has no templates; give objects with `name`, `family`, `prompt`, `placeholder`")
    return tuple(templates.values())


def _parse_template(row: Any, place: str) -> Template:
    fields = dict(row) if isinstance(row, dict) else {}
    texts = [fields.get(field) for field in ("name", "family", "prompt", "placeholder")]
    system = fields.get("system")
    if not all(isinstance(text, str) and text.strip() for text in texts) or not isinstance(system, str | None):
        raise PatchscopesError(
            f"{place}: expected the strings `name`, `family`, `prompt` and `placeholder`, and perhaps `system`, got "
            f"{str(row)[:120]}"
        )
    # The prompt as it is: a space or newline at its end may be meant.
    name, family, prompt, placeholder = map(str, texts)
    if family not in FAMILIES:
        raise PatchscopesError(f"{place}: the family is one of {', '.join(FAMILIES)}, got {family!r}")
    if placeholder not in prompt:
        raise PatchscopesError(
            f"{place}: the placeholder {placeholder!r} is not in the prompt {prompt[:120]!r}; write it where the state "
            "goes"
        )
    if system is not None and family != CHAT:
        raise PatchscopesError(f"{place}: only a template of the family {CHAT} has a `system` message")
    return Template(name=name, family=family, prompt=prompt, placeholder=placeholder, system=system)


def find_template(templates: Sequence[Template], name: str) -> Template:
    """The template with this name.

    Raises:
        PatchscopesError: there is none.
    """
    for template in templates:
        if template.name == name:
            return template
    names = ", ".join(template.name for template in templates)
    raise PatchscopesError(f"there is no template {name!r}; choose from {names}")


def select_family(templates: Sequence[Template], family: str) -> tuple[Template, ...]:
    """The templates of one family.

    Raises:
        PatchscopesError: there are none.
    """
    selected = tuple(template for template in templates if template.family == family)
    if not selected:
        there = ", ".join(dict.fromkeys(template.family for template in templates))
        raise PatchscopesError(f"no template is of the family {family!r}; these are of {there}")
    return selected
