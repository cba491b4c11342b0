"""Target prompts and their placeholders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patchscopes.errors import PatchscopesError

if TYPE_CHECKING:
    import patchscopes.model.lens_model

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


# T of the two ways to read the next token with nothing learned, by their names in result files.
NEXT_TOKEN_PROMPTS = {"token_identity": build_token_identity_prompt(), "simplescope": SIMPLESCOPE_PROMPT}


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


@dataclass(frozen=True)
class Chat:
    """A prompt as a user's message in the model's own chat template, as `as_chat` writes it: a text like any other.

    Words are found in the prompt. What the template puts around it is to a chat what BOS is to any text: tokens that
    are counted, and stand for no part of it.

    Attributes:
        system: what a system message in front of it says; without it, what the template says by itself, if anything.
    """

    prompt: str
    system: str | None = None


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """Which prompts of an experiment are put into the model's chat template; without it neither.

    Attributes:
        source: S: it is the user's message, and i is the same token of it.
        target: T: it is the user's message, i* is the same token of it, and what is read is how the assistant goes on.
        system: the system message of both.
    """

    source: bool = False
    target: bool = False
    system: str | None = None

    def of_source(self, prompt: str) -> str | Chat:
        """S, as the model reads it."""
        return Chat(prompt, self.system) if self.source else prompt

    def of_target(self, prompt: str) -> str | Chat:
        """T, as the model reads it."""
        return Chat(prompt, self.system) if self.target else prompt


NO_CHAT = ChatForm()


def as_chat(model: "patchscopes.model.lens_model.LensModel", prompt: str, system: str | None = None) -> str:
    """The prompt as a user's message in the model's own chat template, up to where the assistant goes on.

    The prompt stands in the chat as it was given, so that its placeholder can be found there: the last one, unless the
    template itself says it once more behind the prompt. Where the model puts BOS in front of any text, the chat begins
    behind it: `to_token_ids` reads exactly the tokens of the template.

    Args:
        system: what a system message in front of it says; without it, what the template says by itself, if anything.

    Raises:
        PatchscopesError: the tokenizer has no chat template, or its template refuses the messages or changes the
            prompt.
    """
    # Imported here: scripts read this module for their options, and these two take their time.
    import jinja2

    from patchscopes.tokens import to_token_ids

    tokenizer = model.tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        raise PatchscopesError(
            f"the tokenizer of {model.cfg.model_name!r} has no chat template; give the prompt itself, or choose a "
            "model that is tuned for chats"
        )
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        chat: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except (jinja2.TemplateError, ValueError) as error:
        # ValueError: of several templates none is the usual one.
        raise PatchscopesError(
            f"the chat template of {model.cfg.model_name!r} refuses these messages ({error}); leave out the system "
            "message, or give the prompt itself"
        ) from error
    if prompt not in chat:
        raise PatchscopesError(
            f"the chat template of {model.cfg.model_name!r} changes the prompt {prompt!r}; give one without spaces at "
            "its ends"
        )
    bos = tokenizer.bos_token
    puts_bos = int(to_token_ids(model, "x")[0]) == tokenizer.bos_token_id
    return chat.removeprefix(bos) if bos and puts_bos else chat
