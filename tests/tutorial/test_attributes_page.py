"""The page on attribute extraction: as the library reads it, learned on request, and with samples that run."""

from inspect import cleandoc

import pytest
from made_up_relations import CARRIERS, make_relation

from patchscopes.data.relations import RELATIONS_FOLDER, load_relations
from patchscopes.experiments import attribute_example
from patchscopes.experiments.config import AttributeExampleConfig
from patchscopes.positions import find_substring_token_position
from patchscopes.tutorial import models
from patchscopes.tutorial.pages import attributes
from patchscopes.tutorial.pages.attributes_methods import list_methods
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

LEARN = "Add the probe and the LRE"


@pytest.fixture
def tiny(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture
def made_up(tiny, monkeypatch, tmp_path):
    """A relation that the tiny model knows, in the place of the library's, and a cache of its own."""
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    relation = make_relation(tiny)
    monkeypatch.setattr(attributes, "load_library_relations", lambda: {relation.name: relation})
    monkeypatch.setattr(attributes, "load_carriers", lambda: CARRIERS)
    monkeypatch.setattr(attributes, "DEFAULT_RELATION", relation.name)
    return relation


def find_table(app):
    return next(table.value for table in app.table if "Patchscope" in table.value.columns)


def read_with_library(model, name="capital", **changed):
    (relation,) = load_relations([RELATIONS_FOLDER / f"{name}.json"])
    options = {"source_prompt": attributes.DEFAULT_PROMPT, "source_position": None} | changed
    if options["source_position"] is None:
        options["source_position"] = find_substring_token_position(model, options["source_prompt"], "Japan")
    return attribute_example.run(model, relation, AttributeExampleConfig(**options))


def tabulate(results):
    return [[escape(cell) for cell in row.values()] for row in attributes.tabulate(results)]


def test_answers_as_the_library_does(open_page, tiny):
    app = open_page("attributes")
    assert find_table(app).to_numpy().tolist() == tabulate(read_with_library(tiny))
    assert app.text_input(key="relation answer of capital of Japan").value == "Tokyo"
    app.selectbox(key="relation").set_value("currency")
    app.selectbox(key="relation ℓ*").set_value("same")
    app.slider(key="ℓ").set_value((1, 2)).run()
    assert not app.exception
    assert app.text_input(key="relation answer of currency of Japan").value == "yen"
    expected = read_with_library(tiny, "currency", target_layer="same", layers=(1, 2))
    assert find_table(app).to_numpy().tolist() == tabulate(expected)


def test_a_link_says_the_same(open_page, tiny):
    address = {"relation": "language", "relation ℓ*": "2", "relation answer": "Ainu", "ℓ": "1-1"}
    app = open_page("attributes", **address)
    assert app.text_input(key="relation answer of language of Japan").value == "Ainu"
    expected = read_with_library(tiny, "language", target_layer="2", layers=(1,), answer="Ainu")
    assert find_table(app).to_numpy().tolist() == tabulate(expected)
    assert {name: app.query_params[name] for name in address} == address | {"ℓ": "1"}
    # The answer of the link is that of its subject alone.
    app.button(key="attributes example Canada").click().run()
    assert app.text_input(key="relation answer of language of Canada").value == "English"
    assert app.query_params["relation answer"] == "English"


def test_every_example_is_a_subject_of_the_relations_about_countries():
    for name in ("capital", "currency", "language"):
        subjects = {sample.subject for sample in attributes.load_library_relations()[name].samples}
        assert {example.word for example in attributes.EXAMPLES} <= subjects
    assert all(example.word in example.source_prompt for example in attributes.EXAMPLES)


def test_a_word_that_is_no_subject_and_a_token_of_no_word(open_page):
    app = open_page("attributes", ℓ="1")
    app.pills(key="i").set_value(len(app.pills(key="i").options) - 1).run()
    assert any("is no subject of this relation" in caption.value for caption in app.caption)
    assert "p" not in find_table(app).columns
    app.text_input(key="relation answer of capital of year").set_value("tax $5").run()
    assert not app.exception
    assert "p" in find_table(app).columns
    app.pills(key="i").set_value(0).run()
    assert "of no word" in app.error[0].value
    assert not app.exception


@pytest.mark.filterwarnings("ignore:no font of this machine")
@pytest.mark.parametrize("prompt", ["", "$Japan$ *is* :red[japan] <b>", "妹は日本へ", "  ", "x"])
def test_any_source_prompt(open_page, prompt):
    app = open_page("attributes", S=prompt, ℓ="1", i="3")
    assert not app.exception
    assert bool(app.error) == (not prompt.strip())
    assert all("of no word" in error.value for error in app.error)


def test_a_model_that_knows_nothing_says_so(open_page, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    app = open_page("attributes", ℓ="1")
    next(button for button in app.button if button.label.startswith(LEARN)).click().run()
    assert "knows 0 of the" in app.error[0].value.replace("\\", "")
    assert not app.exception


def test_probe_and_lre_come_on_request_and_stay(open_page, made_up):
    app = open_page("attributes", S=f"Here comes {made_up.samples[0].subject}", ℓ="1-2")
    assert list(find_table(app).columns) == ["ℓ", "Patchscope", "p"]
    next(button for button in app.button if button.label.startswith(LEARN)).click().run()
    assert not app.exception
    assert not app.error
    assert list(find_table(app).columns) == ["ℓ", "Patchscope", "p", "LRE", "Probe"]
    # Other layers are read without learning anew, and nothing is asked.
    app.slider(key="ℓ").set_value((0, 1))
    app.pills(key="attributes method").set_value("lre").run()
    assert list(find_table(app).columns) == ["ℓ", "Patchscope", "p", "LRE", "Probe"]
    assert not [button for button in app.button if button.label.startswith(LEARN)]
    assert any("differ by at most" in markdown.value for markdown in app.markdown)


def test_code_samples_run(tiny, made_up, run_code, monkeypatch):
    monkeypatch.setattr("patchscopes.data.relations.load_relations", lambda paths: (made_up,))
    monkeypatch.setattr("patchscopes.data.relations.load_carriers", lambda: CARRIERS)
    subject = made_up.samples[0].subject
    choice = Choice(model="tiny", source_prompt=f"Here comes {subject}", source_position=-1, layers=(1, 2))
    document = {"results": {"subject": subject, "layers": [1, 2], "methods": {}}}
    for method in list_methods(choice, made_up, "0", document):
        printed = run_code(cleandoc(method.code), tiny)
        layers = [line.split(" ")[0] for line in printed.splitlines() if line.split(" ")[0].isdecimal()]
        assert layers == ["1", "2"]


def test_while_the_model_loads_the_rest_is_there(open_page, monkeypatch):
    monkeypatch.setattr(models, "get", lambda name: None)
    app = open_page("attributes")
    for method in ("patchscope", "probe", "lre"):
        app.pills(key="attributes method").set_value(method).run()
        assert not app.exception
        assert "My sister moved to Japan last year" in app.code[0].value
    assert any("ahead in" in markdown.value for markdown in app.markdown)
    assert not [table for table in app.table if "Patchscope" in table.value.columns]
