"""Target prompts and their placeholders."""

from collections.abc import Sequence

from patchscopes.errors import PatchscopesError
from patchscopes.lens_model import LensModel
from patchscopes.positions import find_substring_token_position, token_spans
from patchscopes.target import TargetPrompt
from patchscopes.tokens import to_token_ids, token_texts

# The demonstrations and the placeholder of the paper's published code.
TOKEN_IDENTITY_DEMOS = ("cat", "1135", "hello")
PLACEHOLDER = "?"

# The examples and the placeholder of the paper's entity descriptions (section 4.3).
DESCRIPTION_EXAMPLES = (
    ("Syria", "Country in the Middle East"),
    ("Leonardo DiCaprio", "American actor"),
    ("Samsung", "South Korean multinational major appliance and consumer electronics corporation"),
)
DESCRIPTION_PLACEHOLDER = "x"
DESCRIPTION_SEPARATOR = ", "

# The whole target prompt of the Simplescope: nothing but the placeholder (and BOS, where the model has it).
SIMPLESCOPE_PROMPT = PLACEHOLDER


def build_token_identity_prompt(
    demos: Sequence[str] = TOKEN_IDENTITY_DEMOS, *, placeholder: str = PLACEHOLDER, separator: str = "\n"
) -> str:
    """The token-identity prompt (paper, sections 3 and 4.1): `cat -> cat`, `1135 -> 1135`, `hello -> hello`, `?`.

    Each demonstration repeats a token, so the model goes on with the token that it finds in the placeholder.
    `separator="; "` gives the variant in one line.
    """
    return separator.join([*(f"{demo} -> {demo}" for demo in demos), placeholder])


def build_entity_description_prompt(
    examples: Sequence[tuple[str, str]] = DESCRIPTION_EXAMPLES,
    *,
    placeholder: str = DESCRIPTION_PLACEHOLDER,
    separator: str = DESCRIPTION_SEPARATOR,
) -> str:
    """The entity-description prompt (paper, section 4.3): `Syria: Country in the Middle East, …, x`.

    Each example is a name and what it is, so the model goes on with `: ` and a description of what it finds in the
    placeholder.
    """
    return separator.join([*(f"{name}: {description}" for name, description in examples), placeholder])


def placeholder_target(model: LensModel, prompt: str, placeholder: str = PLACEHOLDER) -> TargetPrompt:
    """The prompt with i* at the last occurrence of its placeholder.

    Raises:
        PatchscopesError: the placeholder is not in the prompt, or not one token of its own there.
    """
    if not placeholder or placeholder not in prompt:
        raise PatchscopesError(f"the target prompt {prompt!r} has no placeholder {placeholder!r}; put one into it")
    first, last = (
        find_substring_token_position(model, prompt, placeholder, last=last, occurrence=-1) for last in (False, True)
    )
    span = token_spans(model, prompt)[last]
    if first != last or prompt[slice(*span)].strip() != placeholder.strip():
        raise PatchscopesError(
            f"the placeholder {placeholder!r} is not one token of its own in the target prompt {prompt!r}: its tokens "
            f"are {token_texts(model, to_token_ids(model, prompt))}; choose another placeholder or put spaces around it"
        )
    return TargetPrompt(model, prompt, last)
