"""The page on decoding next tokens."""

import pytest

from patchscopes.experiments import next_token_example
from patchscopes.experiments.config import NextTokenExampleConfig
from patchscopes.tutorial import lens_methods
from patchscopes.tutorial.state import Choice

PAGE = "next_tokens"
PROMPT = "a dog in the sun"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))


@pytest.fixture
def page(open_page):
    return open_page(PAGE, S=PROMPT, i="3")


def get_table(app):
    """The table over layers, which is the one that begins with ℓ."""
    return next(table.value for table in app.table if table.value.columns[0] == "ℓ")


def get_captions(app):
    return " ".join(caption.value for caption in app.caption)


def test_shows_what_the_library_says(page, models_by_tokenizer):
    assert page.title[0].value == "Decoding next tokens"
    table = get_table(page)
    assert list(table["ℓ"]) == ["unpatched", "0", "1", "2", "3"]
    assert list(table.columns)[1:] == ["Logit Lens", "Token identity", "Simplescope"]
    model = models_by_tokenizer["byte_level"]
    config = NextTokenExampleConfig(source_prompt=PROMPT, source_position=3)
    results = next_token_example.run(model, config)
    for slot, likely in enumerate(results["methods"]["simplescope"]["top_k"]):
        assert f"({likely[0]['probability']:.0%})".replace("(", "\\(").replace(")", "\\)") in table["Simplescope"][slot + 1]
