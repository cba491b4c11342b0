"""The first page, and the bar that all pages share."""

from concurrent.futures import Future

import pytest
from tutorial_app import go_to

from patchscopes.errors import PatchscopesError
from patchscopes.patchscope import Patchscope
from patchscopes.tutorial import committed, models
from patchscopes.tutorial.pages import start
from patchscopes.tutorial.signs import escape


def list_html(app):
    return " ".join(element.value for element in app.get("html"))


def list_said(app):
    """What each layer says, in the table beneath the last step."""
    app.pills(key="step").set_value(start.STEPS[4]).run()
    return list(app.table[0].value["the model says"])


def read_with_library(model, source_position, source_prompt="My sister moved to Japan last year", **changed):
    patchscope = Patchscope(
        model=model,
        source_prompt=source_prompt,
        source_position=source_position,
        **{"target_prompt": "The official currency of x", "target_position": "x", "target_layers": 0} | changed,
    )
    return [escape(words) for words in patchscope.generate(start.N_TOKENS)]


@pytest.fixture
def tiny(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


class TestExample:
    def test_is_there_before_the_model(self, open_page):
        app = open_page()
        models._get_shelf().loading["tiny"] = Future()
        app.run()
        assert any("loading" in caption.value for caption in app.caption)
        said = committed.load(start.EXAMPLE)["results"]["methods"]["token_identity"]["generations"]
        assert "yen" in said[start.EXAMPLE_LAYER]
        assert list_said(app) == [escape(words) for words in said]
        assert said[start.EXAMPLE_LAYER] in list_html(app)

    def test_goes_through_five_steps_and_back(self, open_page):
        app = open_page()
        seen = [list_html(app)]
        for _ in start.STEPS[1:]:
            app.button(key="next").click().run()
            assert not app.exception
            seen.append(list_html(app))
        # S alone, then with i marked, and from the fourth step on T with i* marked.
        assert [page.count("font-weight:600") for page in seen] == [0, 1, 1, 2, 2]
        assert app.button(key="next").disabled
        app.button(key="back").click().run()
        assert app.pills(key="step").value == start.STEPS[3]

    def test_says_what_the_library_says(self, open_page, tiny):
        app = open_page()
        assert list_said(app) == read_with_library(tiny, "Japan")
        app.text_input(key=start.TARGET_PROMPT).set_value("x is what").run()
        app.slider(key=start.TARGET_LAYER).set_value(2).run()
        expected = read_with_library(tiny, "Japan", target_prompt="x is what", target_layers=2)
        assert list_said(app) == expected

    def test_a_prompt_without_its_placeholder_is_told(self, open_page):
        app = open_page()
        app.text_input(key=start.TARGET_PROMPT).set_value("nothing").run()
        assert not app.exception
        assert "the target prompt 'nothing' has no placeholder 'x'" in app.error[0].value.replace("\\", "")


class TestBar:
    def test_a_click_on_a_token_is_the_position(self, open_page, tiny):
        app = open_page()
        app.pills(key="i").set_value(3).run()
        assert list_said(app) == read_with_library(tiny, 3)
        assert app.query_params["i"] == "3"

    def test_layers_are_those_that_are_read(self, open_page, tiny):
        app = open_page()
        app.slider(key="ℓ").set_value((1, 2)).run()
        assert list_said(app) == read_with_library(tiny, "Japan", source_layers=[1, 2])
        assert app.query_params["ℓ"] == "1-2"

    def test_stays_from_page_to_page(self, open_page):
        app = open_page()
        app.text_input(key="S").set_value("The $cost$ of *this*").run()
        app.pills(key="i").set_value(2).run()
        app.slider(key="ℓ").set_value((1, 3)).run()
        chosen = dict(app.query_params)
        go_to(app, "change_one_thing")
        assert {name: app.query_params[name] for name in chosen} == chosen
        go_to(app, "start")
        assert app.query_params == chosen

    def test_a_link_says_it(self, open_page, tiny):
        app = open_page(**{"S": "Canada is cold", "i": "2", "ℓ": "1-3"})
        assert (app.text_input(key="S").value, app.pills(key="i").value) == ("Canada is cold", 2)
        assert list_said(app) == read_with_library(tiny, 2, "Canada is cold", source_layers=[1, 2, 3])

    @pytest.mark.parametrize(
        "address", [{"i": "99"}, {"i": "-3"}, {"i": "x"}, {"ℓ": "7-99"}, {"ℓ": "3-1"}, {"ℓ": "a-b"}, {"M": "../secret"}]
    )
    def test_a_link_that_is_wrong_shows_what_there_is(self, open_page, address):
        app = open_page(**{"S": "Canada is cold"} | address)
        assert not app.error
        assert list_said(app)
        assert app.selectbox(key="M").value == "tiny"

    def test_a_prompt_that_is_too_long_is_told_and_the_page_still_drawn(self, open_page):
        app = open_page(S="word " * 600)
        assert not app.exception
        assert "the model reads at most" in app.error[0].value
        assert app.pills(key="step").options

    def test_a_shorter_prompt_has_its_last_token_read(self, open_page):
        app = open_page()
        app.pills(key="i").set_value(12).run()
        app.text_input(key="S").set_value("Hi").run()
        assert not app.exception
        assert app.pills(key="i").value == len(app.pills(key="i").options) - 1

    def test_another_model_reads_the_same_prompt(self, open_page, models_by_tokenizer):
        by_name = {"one": models_by_tokenizer["byte_level"], "two": models_by_tokenizer["sentencepiece_like"]}
        app = open_page(by_name=by_name)
        app.slider(key="ℓ").set_value((2, 3)).run()
        app.selectbox(key="M").set_value("two").run()
        assert not app.exception
        assert app.slider(key="ℓ").value == (2, by_name["two"].cfg.n_layers - 1)
        assert app.query_params["M"] == "two"


class TestModels:
    def test_only_what_was_named_is_served(self, open_page):
        open_page()
        with pytest.raises(PatchscopesError, match="started with tiny, not with '/etc'"):
            models.get("/etc")

    def test_what_cannot_be_loaded_is_told(self, open_page):
        app = open_page()
        failed = Future()
        failed.set_exception(PatchscopesError("the file is *broken*"))
        models._get_shelf().loading["tiny"] = failed
        app.run()
        assert not app.exception
        assert app.error[0].value == r"the file is \*broken\*"

    def test_is_loaded_once_for_all(self, serve, monkeypatch):
        serve({})
        loaded = []
        monkeypatch.setattr(models, "_load", lambda name, served: loaded.append(name) or name)
        models.serve(models.ServedModels(names=("a", "b")))
        while any(models.get(name) is None for name in ("a", "b")):
            pass
        assert models.get("a") == "a"
        assert sorted(loaded) == ["a", "b"]
