"""Two-hop questions that a tiny random model can answer."""

import re
from collections.abc import Callable

from patchscopes.data.questions import TwoHopQuestion, contains_answer
from patchscopes.engine.unpatched import generate_after
from patchscopes.prompts import Chat

NAMES = [
    f"{kind} {animal}"
    for kind in ("RED", "BLUE", "OLD", "BIG", "WILD", "TAME", "SHY", "FAST")
    for animal in ("DOG", "CAT", "BIRD", "FISH", "HORSE", "COW")
]


def make_questions(model, n_questions: int = 4, form: Callable[[str], str | Chat] = str) -> list[TwoHopQuestion]:
    """Questions to which a tiny random model knows the "answers": whatever it says to each hop.

    Args:
        form: in which the model is asked.
    """

    def says(prompts: list[str]) -> list[tuple[str, ...]]:
        tokens = generate_after(model, [form(prompt) for prompt in prompts], max_new_tokens=5)
        texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [tuple(re.findall(r"[^\W_]+", text)) for text in texts]

    questions = []
    to_hop1 = says([f"The {name} is" for name in NAMES])
    to_hop2 = says([f"Colour of {words[0] if words else 'x'} is" for words in to_hop1])
    for number, (name, hop1, hop2) in enumerate(zip(NAMES, to_hop1, to_hop2, strict=True)):
        combined = f"Colour of the {name} is"
        if hop1 and hop2 and not contains_answer(combined, hop2):
            questions.append(
                TwoHopQuestion(
                    id=number,
                    hop1_prompt=f"The {name} is",
                    hop1_answer=hop1[0],
                    pi1=f"the {name}",
                    pi2="Colour of {}",
                    hop2_answer=hop2[0],
                    hop2_aliases=hop2[1:],
                    combined_question=combined,
                    category=f"kind {number % 2}",
                )
            )
    assert len(questions) >= n_questions
    return questions[:n_questions]
