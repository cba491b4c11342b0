"""The page on entity resolution: three questions about one name, what they answer, wrong inputs, and the code."""

import pytest

from patchscopes.errors import PatchscopesError
from patchscopes.experiments import entity_example, knockout_example, tracing_example
from patchscopes.experiments.config import AttentionKnockoutConfig, EntityConfig, TracingExampleConfig
from patchscopes.tutorial.pages.entities import DESCRIPTION, EXAMPLES, KNOCKOUT, NAME, SHOW, TRACING

PROMPT = "We saw Big Dog in the"
# i: the last token of "Dog"; found by the test of the same name below.
WORD = "Dog"


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture
def open_entities(open_page, model):
    from patchscopes.positions import find_substring_token_position

    def open_it(show=DESCRIPTION, prompt=PROMPT, word=WORD, **address):
        position = find_substring_token_position(model, prompt, word) if isinstance(word, str) else word
        return open_page("entities", S=prompt, i=str(position), **{SHOW: show}, **address)

    return open_it


def test_try():
    pass
