"""Facts that a tiny random model knows: the attribute begins with what it says next."""

from collections.abc import Callable

from made_up_questions import NAMES

from patchscopes.data.facts import Fact
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.positions import find_first_tokens
from patchscopes.prompts import Chat

# Where the subject stands: at the beginning, with one token behind it, with several, and at the end.
TEMPLATES = ("{} is", "The {} is", "The {} lives in a", "We saw {}", "A {} likes to")


def make_facts(model, n_facts: int = 6, form: Callable[[str], str | Chat] = str) -> tuple[Fact, ...]:
    """Facts that the model knows, of all templates in turn; its tokenizer must write spaces in front of words.

    Args:
        form: in which the model is asked.
    """
    prompts = [(template, name) for name in NAMES for template in TEMPLATES]
    asked = [form(template.format(name)) for template, name in prompts]
    says = generate_after(model, asked, max_new_tokens=1)
    facts = []
    for (template, name), after, token in zip(prompts, asked, says[:, 0].tolist(), strict=True):
        attribute, start = model.tokenizer.decode(token).strip(), template.index("{}")
        # Some tokens are no text of their own, or stand only within words.
        if attribute and token in find_first_tokens(model, [attribute], after=after):
            prompt = template.format(name)
            facts.append(Fact(prompt=prompt, span=(start, start + len(name)), attribute=attribute))
    if len(facts) < n_facts:
        raise PatchscopesError(f"the model knows {len(facts)} of {len(prompts)} made-up facts; make up more")
    return tuple(facts[:n_facts])
