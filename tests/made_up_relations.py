"""Relations that a tiny random model knows: the "object" of a subject is a word of what it says about it."""

import re
from collections.abc import Callable

from made_up_questions import NAMES

from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.unpatched import generate_after
from patchscopes.prompts import Chat

CARRIERS = {
    "animal": ("Here comes {} at last", "He saw {}", "Once {} was there for all", "We ask: is {} in", "So {} it is"),
    "unspecified": ("Look at {} now", "It is {}"),
}


def make_relation(
    model,
    name: str = "colour",
    prompt: str = "Colour of {}",
    n_samples: int = 12,
    form: Callable[[str], str | Chat] = str,
) -> Relation:
    """A relation whose objects the model says within 20 tokens.

    Args:
        form: in which the model is asked.
    """
    texts = model.tokenizer.batch_decode(
        generate_after(model, [form(prompt.replace("{}", name)) for name in NAMES], max_new_tokens=20),
        skip_special_tokens=True,
    )
    samples = []
    for subject, text in zip(NAMES, texts, strict=True):
        # Single letters that the prompt has not, so that few rows find them by chance.
        words = [word for word in re.findall(r"[^\W_]+", text) if word.casefold() not in prompt.casefold()]
        if words:
            samples.append(RelationSample(subject=subject, object=words[0], aliases=tuple(words[1:3])))
    assert len(samples) >= n_samples
    return Relation(name=name, prompt=prompt, kind="factual", subject_kind="animal", samples=tuple(samples[:n_samples]))
