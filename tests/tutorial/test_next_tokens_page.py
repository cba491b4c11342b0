"""The page on decoding next tokens."""

from concurrent.futures import Future
from dataclasses import replace

import pytest
from tutorial_app import go_to

from patchscopes.data import texts
from patchscopes.data.texts import TextSet
from patchscopes.experiments import next_token_example
from patchscopes.experiments.config import NextTokenExampleConfig
from patchscopes.plots.style import METHOD_STYLES
from patchscopes.plots.text import show_whitespace
from patchscopes.tutorial import committed, models
from patchscopes.tutorial.pages import next_tokens_findings as findings
from patchscopes.tutorial.pages.next_tokens_learned import LEARNABLE, learn
from patchscopes.tutorial.pages.next_tokens_methods import build_methods
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import Choice

PAGE = "next_tokens"
PROMPT = "a dog in the sun"
CONFIG = NextTokenExampleConfig(source_prompt=PROMPT, source_position=3)
CHOICE = Choice(model="tiny", source_prompt=PROMPT, source_position=3, layers=(0, 1, 2, 3))
METHODS = {method.key: method for method in build_methods(CHOICE, None, None)}


TRAIN = TextSet("made up", "train", tuple(f"{number} dogs are {number * number} cats" for number in range(40)))


@pytest.fixture(autouse=True)
def learn_little(tmp_path, monkeypatch):
    """Lenses are learned from a few short texts, and kept for the test alone."""
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    monkeypatch.setattr(texts, "load_texts", lambda split: TRAIN)


@pytest.fixture
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture
def page(open_page):
    return open_page(PAGE, S=PROMPT, i="3")


def get_table(app):
    """The table over layers."""
    return next(table.value for table in app.table if table.value.columns[0] == "ℓ")


def get_captions(app):
    return " ".join(caption.value for caption in app.caption)


def choose(app, key, value):
    next(group for group in app.button_group if group.key == f"{PAGE} {key}").set_value(value).run()
    assert not app.exception


def click(app, label):
    next(button for button in app.button if button.label.startswith(label)).click().run()
    assert not app.exception


def expect(table, results, method):
    """The column of a method holds what the library says: unpatched, and at each layer."""
    column = table[escape(METHOD_STYLES[method].label)]
    control = results["controls"].get(method)
    said = [control["top_k"] if control else None, *results["methods"][method]["top_k"]]
    texts = ["" if top is None else f"{show_whitespace(top[0]['token'])} ({top[0]['probability']:.0%})" for top in said]
    assert list(column) == list(map(escape, texts))


class TestTheReadersExample:
    def test_is_what_the_library_says(self, page, model):
        assert page.title[0].value == "Decoding next tokens"
        table = get_table(page)
        assert list(table["ℓ"]) == ["unpatched", "0", "1", "2", "3"]
        results = next_token_example.run(model, CONFIG)
        for method in ("logit_lens", "token_identity", "simplescope"):
            expect(table, results, method)
        assert "To be learned first, and so not drawn yet: Tuned Lens" in get_captions(page)

    def test_other_methods(self, page, model):
        choose(page, "methods", ["simplescope", "fixed_prompt"])
        table = get_table(page)
        assert list(table.columns) == ["ℓ", escape("Future Lens: fixed prompt"), "Simplescope"]
        expect(table, next_token_example.run(model, CONFIG), "fixed_prompt")
        choose(page, "methods", [])
        assert [info.value for info in page.info] == ["Choose at least one method that can read this token."]

    def test_a_later_token(self, page, model):
        choose(page, "ahead", 3)
        assert "Only for the very next token, and so not drawn: Logit Lens, Tuned Lens" in get_captions(page)
        table = get_table(page)
        assert list(table.columns) == ["ℓ", "Token identity", "Simplescope"]
        expect(table, next_token_example.run(model, replace(CONFIG, ahead=3)), "simplescope")

    def test_stays_from_page_to_page(self, page):
        choose(page, "methods", ["simplescope"])
        go_to(go_to(page, "start"), PAGE)
        assert list(get_table(page).columns) == ["ℓ", "Simplescope"]

    def test_other_layers_and_position(self, page, model):
        page.slider[0].set_value((1, 2)).run()
        page.pills(key="i").set_value(1).run()
        table = get_table(page)
        assert list(table["ℓ"]) == ["unpatched", "1", "2"]
        expect(table, next_token_example.run(model, replace(CONFIG, source_position=1, layers=(1, 2))), "logit_lens")

    def test_an_example(self, page, model):
        click(page, "counting")
        assert page.text_input[0].value == "one, two, three, four,"
        config = replace(CONFIG, source_prompt="one, two, three, four,", source_position=-1)
        expect(get_table(page), next_token_example.run(model, config), "simplescope")

    def test_wrong_input_gets_a_sentence(self, page):
        page.text_input[0].set_value("x " * 600).run()
        assert not page.exception
        assert "tokens, the model reads at most" in page.error[0].value
        assert not [table for table in page.table if table.value.columns[0] == "ℓ"]


class TestLearning:
    def test_when_asked_for_and_once(self, page, model, open_page):
        click(page, "Fit the Tuned Lens")
        maps = {"tuned_lens": learn(model, "tuned_lens", lambda steps: pytest.fail("it is in the cache folder"))}
        expect(get_table(page), next_token_example.run(model, CONFIG, maps=maps), "tuned_lens")
        choose(page, "method", "tuned_lens")
        assert "In your example, the largest difference" in get_measured(page)
        # Another reader, another day.
        again = open_page(PAGE, S=PROMPT, i="3")
        assert escape("Tuned Lens (least squares)") in get_table(again)
        assert not [button for button in again.button if button.label.startswith("Fit")]

    def test_each_has_its_own(self, page):
        choose(page, "methods", list(LEARNABLE))
        labels = [button.label for button in page.button]
        for learnable in LEARNABLE.values():
            assert any(label.startswith(f"{learnable.request} (about ") for label in labels)


def get_measured(app):
    return next(text.value for text in app.markdown if text.value.startswith("**Measured.**"))


class TestMethods:
    def test_are_those_of_the_task(self):
        assert list(METHODS) == [
            *("logit_lens", "tuned_lens", "linear", "fixed_prompt"),
            *("token_identity", "simplescope", "jacobian_lens"),
        ]
        assert set(METHODS) <= set(METHOD_STYLES)

    @pytest.mark.parametrize("key", METHODS)
    def test_code_runs_and_says_what_the_page_says(self, run_code, model, key):
        printed = run_code(METHODS[key].code, model)
        lines = printed.splitlines()
        assert [line.split()[0] for line in lines[:4]] == ["0", "1", "2", "3"]
        assert float(lines[-1].split()[-1]) < 1e-3

    def test_code_holds_any_prompt(self, run_code, model):
        prompt = "a \"quote\", a 'quote'\nand {braces} \\n"
        choice = replace(CHOICE, source_prompt=prompt, layers=(2,))
        (method,) = (one for one in build_methods(choice, model, None) if one.key == "simplescope")
        assert run_code(method.code, model).startswith("2 [")
        assert method.patchscope.source_prompt == f"<s>{prompt}"

    def test_are_drawn(self, page):
        for key, method in METHODS.items():
            choose(page, "method", key)
            assert any(text.value == f"#### {method.name}" for text in page.markdown)
            (code,) = page.code
            assert code.value.startswith("from patchscopes import")

    def test_without_a_model(self, page):
        models._get_shelf().loading["tiny"] = Future()
        page.run()
        assert not page.exception
        assert [title.value for title in page.subheader] == ["The methods", "On many samples"]
        assert page.code[0].value.startswith("from patchscopes import")
        assert not [table for table in page.table if table.value.columns[0] == "ℓ"]


class TestCommittedNumbers:
    @pytest.mark.parametrize(("ours", "lead"), [([0.1, 0.5, 0.2, 0.4, 1.0], 3), ([1.0] * 5, 0), ([0.0] * 5, None)])
    def test_since_when_a_method_is_ahead(self, ours, lead):
        curves = {"simplescope": ours, "tuned_lens": [0.2, 0.3, 0.3, 0.4, 1.0]}
        methods = {name: {"precision_at_1": {"mean": curve}} for name, curve in curves.items()}
        assert findings.find_lead({"layers": [0, 1, 2, 3, 4], "methods": methods}, "simplescope") == lead

    def test_are_those_of_the_figures(self):
        results = committed.load("fig2")["results"]
        lead = findings.find_lead(results, "token_identity")
        assert f"only from layer {lead} of 30 on" in findings.describe_figure_2()
        share = results["methods"]["logit_lens"]["precision_at_1"]["mean"][24]
        assert f"{share:.0%} at layer 24" in METHODS["logit_lens"].here

    def test_without_the_repository(self, monkeypatch):
        monkeypatch.setattr(committed, "load", lambda name: None)
        methods = {method.key: method for method in build_methods(None, None, None)}
        assert methods["logit_lens"].here == committed.NO_NUMBERS
        assert "figures/" not in methods["tuned_lens"].differs
