"""Target prompts and their placeholders."""

from collections.abc import Sequence

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

# What stands in place of the subject in the target prompt of attribute extraction (section 4.2).
ATTRIBUTE_PLACEHOLDER = "x"

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
