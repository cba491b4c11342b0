"""The page on entity resolution: three questions about one name, what is answered, wrong inputs, and the code."""

from concurrent.futures import Future

import pytest
from tutorial_app import go_to

from patchscopes.data.texts import PASSAGES, load_texts
from patchscopes.experiments import entity_example, knockout_example, tracing_example
from patchscopes.experiments.config import AttentionKnockoutConfig, EntityConfig, TracingExampleConfig
from patchscopes.learned import cached_fits
from patchscopes.learned.fitting import fit_cross_model_maps
from patchscopes.positions import find_substring_token_position
from patchscopes.tutorial import models
from patchscopes.tutorial.pages import entities, entities_live
from patchscopes.tutorial.pages.entities import DESCRIPTION, KNOCKOUT, NAME, SHOW, TRACING
from patchscopes.tutorial.signs import escape
from patchscopes.tutorial.state import LAYERS as LAYERS_NAME

PROMPT, WORD, SUBJECT = "We saw Big Dog in the", "Dog", "Big Dog"
# Few, since most tests are about something else.
LAYERS = (1, 2)


@pytest.fixture(scope="module")
def model(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


@pytest.fixture
def open_entities(open_page, model):
    def open_it(show=DESCRIPTION, prompt=PROMPT, position=None, **address):
        if position is None:
            position = find_substring_token_position(model, prompt, WORD)
        return open_page("entities", S=prompt, i=str(position), **{LAYERS_NAME: "1-2", SHOW: show} | address)

    return open_it


def list_cells(app):
    """The live table: that with a row for each layer."""
    (table,) = [table.value for table in app.table if escape("ℓ") in table.value.columns]
    return [list(row) for row in table.itertuples(index=False)]


def escape_cells(rows):
    return [[escape(cell) for cell in row.values()] for row in rows]


class TestAnswers:
    def test_description(self, open_entities, model):
        app = open_entities()
        position = find_substring_token_position(model, PROMPT, WORD)
        assert app.text_input(key=NAME).value == SUBJECT

        def describe(n_tokens, layers=LAYERS, **options):
            config = EntityConfig(layers=layers, max_new_tokens=n_tokens)
            results = entity_example.run(model, PROMPT, position, config, **options)
            return escape_cells(entities_live.tabulate_descriptions(results))

        assert list_cells(app) == describe(10)
        app.segmented_control(key="entities tokens").set_value(5)
        app.text_input(key=NAME).set_value("cat")
        app.slider(key=LAYERS_NAME).set_range(0, 3).run()
        assert list_cells(app) == describe(5, (0, 1, 2, 3), name="cat")
        assert [button.label for button in app.get("download_button")] == ["JSON", "PNG"]
        # A name of one word has no other ending.
        assert not [button for button in app.button if "ending" in button.label]

    def test_tracing(self, open_entities, model):
        app = open_entities(TRACING)

        def trace(**options):
            config = TracingExampleConfig(layers=LAYERS, **options)
            return escape_cells(entities_live.tabulate_restored(tracing_example.run(model, PROMPT, SUBJECT, config)))

        first = list_cells(app)
        assert first == trace()
        app.segmented_control(key="entities noise").set_value(5)
        app.segmented_control(key="entities samples").set_value(10).run()
        assert list_cells(app) == trace(noise=5.0, n_noise_samples=10) != first

    def test_knockout(self, open_entities, model):
        app = open_entities(KNOCKOUT)

        def knock_out(window):
            config = AttentionKnockoutConfig(layers=LAYERS, window=window)
            return escape_cells(
                entities_live.tabulate_knocked_out(knockout_example.run(model, PROMPT, SUBJECT, config))
            )

        first = list_cells(app)
        assert first == knock_out(5)
        app.segmented_control(key="entities window").set_value(1).run()
        assert list_cells(app) == knock_out(1) != first

    def test_endings_on_request(self, open_entities):
        app = open_entities()
        app.segmented_control(key="entities tokens").set_value(5).run()
        (button,) = [button for button in app.button if "ending" in button.label]
        button.click().run()
        assert not app.exception
        assert not app.error
        assert any("words resolved" in table.value.columns for table in app.table)


class TestWrongInputs:
    @pytest.mark.parametrize("show", [DESCRIPTION, TRACING])
    def test_a_token_that_is_of_no_word(self, open_entities, show):
        app = open_entities(show, position=0)
        (error,) = app.error
        assert "stands for no word of the text" in error.value
        # What needs no result is there nevertheless.
        assert app.code

    @pytest.mark.parametrize("show", [TRACING, KNOCKOUT])
    def test_a_subject_that_is_not_in_the_prompt(self, open_entities, show):
        app = open_entities(show)
        app.text_input(key=NAME).set_value("a *cat*").run()
        (error,) = app.error
        assert escape("the subject 'a *cat*' is not in the prompt") in error.value
        app.text_input(key=NAME).set_value(SUBJECT).run()
        assert not app.error

    def test_nothing_behind_the_subject(self, open_entities):
        app = open_entities(KNOCKOUT, prompt="We saw Big Dog")
        (error,) = app.error
        assert "add a word to the end of the prompt" in error.value


class TestState:
    def test_what_is_chosen_stays_from_page_to_page_and_is_in_the_address(self, open_entities):
        app = open_entities(KNOCKOUT, **{NAME: "Dog"})
        assert app.text_input(key=NAME).value == "Dog"
        app.segmented_control(key="entities window").set_value(3).run()
        go_to(app, "change_one_thing")
        go_to(app, "entities")
        assert app.segmented_control(key=SHOW).value == KNOCKOUT
        assert app.segmented_control(key="entities window").value == 3
        assert app.text_input(key=NAME).value == "Dog"
        assert app.text_input(key="S").value == PROMPT
        assert (app.query_params[SHOW], app.query_params[NAME]) == (KNOCKOUT, "Dog")

    def test_another_token_is_another_name(self, open_entities, model):
        app = open_entities()
        app.pills(key="i").set_value(find_substring_token_position(model, PROMPT, "saw")).run()
        assert app.text_input(key=NAME).value == "saw"

    def test_everything_but_the_result_is_there_before_the_model(self, open_page):
        app = open_page("entities")
        models._get_shelf().loading["tiny"] = Future()
        for show in (DESCRIPTION, TRACING, KNOCKOUT):
            app.segmented_control(key=SHOW).set_value(show).run()
            assert not app.exception
            assert not app.error
            assert "Japan" in app.code[0].value
            assert any("The embedded model" in text.value for text in app.markdown)

    def test_the_example_is_as_the_embedded_model_has_it(self, smollm):
        subject = entities._take_example()
        position = find_substring_token_position(smollm, subject.choice.source_prompt, subject.name)
        assert subject.choice.source_position == position
        assert len(subject.choice.layers) == smollm.cfg.n_layers


class TestCode:
    @pytest.mark.parametrize("show", [DESCRIPTION, TRACING, KNOCKOUT])
    def test_runs_and_says_what_the_page_says(self, open_entities, model, run_code, show):
        app = open_entities(show)
        printed = run_code(app.code[0].value, model)
        cells = list_cells(app)[-len(LAYERS) :]
        assert PROMPT in app.code[0].value
        for line, (layer, *said) in zip(printed.splitlines()[-len(LAYERS) :], cells, strict=True):
            assert line.startswith(f"{layer} ")
            if show == KNOCKOUT:
                percents = [part.rstrip(",%") for part in line.split() if "%" in part]
                assert [escape(f"{percent} %") for percent in percents] == [said[0], said[2]]

    @pytest.mark.parametrize("show", [TRACING, KNOCKOUT])
    def test_runs_for_the_example_too(self, open_page, model, run_code, show):
        app = open_page("entities")
        models._get_shelf().loading["tiny"] = Future()
        app.segmented_control(key=SHOW).set_value(show).run()
        printed = run_code(app.code[0].value.replace("range(0, 30)", "range(1, 3)"), model)
        assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["1", "2"]

    def test_of_two_models(self, open_entities, model, run_code, monkeypatch):
        app = open_entities()
        app.pills(key="entities method").set_value("cross_model").run()
        assert "make setup" in " ".join(text.value for text in app.markdown)
        # The same with fewer texts.
        monkeypatch.setattr(
            cached_fits,
            "fit_or_load_cross_model_maps",
            lambda model, other, texts, *layers: fit_cross_model_maps(
                model, other, load_texts(PASSAGES, "train", limit=20), *layers, n_positions=100
            ),
        )
        run_code(app.code[0].value, model)
