"""The page on attribute extraction: as the library reads it, learned on request, and with samples that run."""

import pytest
from made_up_relations import CARRIERS, make_relation

from patchscopes.data.relations import RELATIONS_FOLDER, load_relations
from patchscopes.experiments import attribute_example
from patchscopes.experiments.config import AttributeExampleConfig
from patchscopes.tutorial.pages import attributes
from patchscopes.tutorial.signs import escape

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
        from patchscopes.positions import find_substring_token_position

        options["source_position"] = find_substring_token_position(model, options["source_prompt"], "Japan")
    return attribute_example.run(model, relation, AttributeExampleConfig(**options))


def tabulate(results):
    return [[escape(cell) for cell in row.values()] for row in attributes.tabulate(results)]


def test_answers_as_the_library_does(open_page, tiny):
    app = open_page("attributes")
    assert find_table(app).to_numpy().tolist() == tabulate(read_with_library(tiny))
    assert app.text_input(key="relation answer of capital of Japan").value == "Tokyo"
    app.selectbox(key="relation").set_value("currency").run()
    assert not app.exception
    assert app.text_input(key="relation answer of currency of Japan").value == "yen"
    app.selectbox(key="relation ℓ*").set_value("same").run()
    expected = read_with_library(tiny, "currency", target_layer="same")
    assert find_table(app).to_numpy().tolist() == tabulate(expected)
    app.slider(key="ℓ").set_value((1, 2)).run()
    expected = read_with_library(tiny, "currency", target_layer="same", layers=(1, 2))
    assert find_table(app).to_numpy().tolist() == tabulate(expected)


def test_a_link_says_the_same(open_page, tiny):
    app = open_page("attributes")
    app.selectbox(key="relation").set_value("language").run()
    app.selectbox(key="relation ℓ*").set_value("2").run()
    app.text_input(key="relation answer of language of Japan").set_value("Ainu").run()
    linked = open_page("attributes", **app.query_params)
    assert not linked.exception
    assert find_table(linked).equals(find_table(app))
    assert linked.text_input(key="relation answer of language of Japan").value == "Ainu"
    # The answer of the link is that of its subject alone.
    linked.button(key="attributes example Canada").click().run()
    assert linked.text_input(key="relation answer of language of Canada").value == "English"
    assert linked.query_params["relation answer"] == ["English"]


def test_every_example_is_a_subject_with_an_answer(open_page):
    app = open_page("attributes")
    for example in attributes.EXAMPLES:
        app.button(key=f"attributes example {example.label}").click().run()
        assert not app.exception
        assert app.text_input(key=f"relation answer of capital of {example.word}").value


def test_a_word_that_is_no_subject_and_a_token_of_no_word(open_page):
    app = open_page("attributes")
    app.pills(key="i").set_value(len(app.pills(key="i").options) - 1).run()
    assert any("is no subject of this relation" in caption.value for caption in app.caption)
    assert "p" not in find_table(app).columns
    app.text_input(key="relation answer of capital of year").set_value("tax $5").run()
    assert not app.exception
    assert "p" in find_table(app).columns
    app.pills(key="i").set_value(0).run()
    assert "of no word" in app.error[0].value
    assert not app.exception


def test_a_model_that_knows_nothing_says_so(open_page, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    app = open_page("attributes")
    next(button for button in app.button if button.label.startswith(LEARN)).click().run()
    assert "knows 0 of the" in app.error[0].value.replace("\\", "")
    assert not app.exception


def test_probe_and_lre_come_on_request_and_stay(open_page, tiny, made_up, run_code, monkeypatch):
    subject, other = made_up.samples[0].subject, made_up.samples[1].subject
    app = open_page("attributes", S=f"Here comes {subject}", i=str(len(f"Here comes {subject}") * 9))
    assert list(find_table(app).columns) == ["ℓ", "Patchscope", "p"]
    next(button for button in app.button if button.label.startswith(LEARN)).click().run()
    assert not app.exception
    assert not app.error
    assert list(find_table(app).columns) == ["ℓ", "Patchscope", "p", "LRE", "Probe"]
    # Other layers are read without learning anew, and nothing is asked.
    app.slider(key="ℓ").set_value((1, 1)).run()
    assert list(find_table(app).columns) == ["ℓ", "Patchscope", "p", "LRE", "Probe"]
    assert not [button for button in app.button if button.label.startswith(LEARN)]
    app.pills(key="attributes method").set_value("lre").run()
    assert any("differ by at most" in markdown.value for markdown in app.markdown)
    assert other != subject


@pytest.mark.parametrize("method", ["patchscope", "probe", "lre"])
def test_code_samples_run(open_page, tiny, made_up, run_code, monkeypatch, method):
    subject = made_up.samples[0].subject
    app = open_page("attributes", S=f"Here comes {subject}")
    app.pills(key="attributes method").set_value(method).run()
    assert not app.exception
    monkeypatch.setattr("patchscopes.data.relations.load_relations", lambda paths: (made_up,))
    monkeypatch.setattr("patchscopes.data.relations.load_carriers", lambda: CARRIERS)
    printed = run_code(app.code[0].value, tiny)
    n_layers = tiny.cfg.n_layers
    assert sum(line.split(" ")[0] in map(str, range(n_layers)) for line in printed.splitlines()) >= n_layers


def test_while_the_model_loads_the_rest_is_there(serve, monkeypatch):
    from streamlit.testing.v1 import AppTest
    from tutorial_app import SCRIPT, go_to

    from patchscopes.tutorial import models

    serve({"tiny": None})
    monkeypatch.setattr(models, "get", lambda name: None)
    app = go_to(AppTest.from_file(SCRIPT, default_timeout=60).run(), "attributes")
    for method in ("patchscope", "probe", "lre"):
        app.pills(key="attributes method").set_value(method).run()
        assert not app.exception
        assert "My sister moved to Japan last year" in app.code[0].value
    assert any("ahead in" in markdown.value for markdown in app.markdown)
