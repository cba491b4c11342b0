"""The page on multi-hop reasoning, as a reader uses it."""

import pytest
from tutorial_app import go_to

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import load_questions
from patchscopes.experiments import multi_hop_example
from patchscopes.experiments.config import MultiHopExampleConfig
from patchscopes.experiments.multi_hop import draw_unrelated
from patchscopes.tutorial.pages import multi_hop

QUESTIONS = load_questions(DATA_FOLDER / "multihop_examples.json")


@pytest.fixture
def page(open_page):
    app = open_page("multi_hop")
    return press(app, "currency, Tokyo")


def press(app, label):
    next(button for button in app.button if button.key == f"multi_hop example {label}").click()
    app.run()
    assert not app.exception, app.exception
    return app


def get_rows(app, number=0):
    """The rows of a table, as texts."""
    return app.table[number].value.to_dict("records")


def get_said(app):
    """The table over layers."""
    return next(rows for rows in (get_rows(app, number) for number in range(len(app.table))) if "Patchscope" in rows[0])


def test_page(page, models_by_tokenizer, run_code):
    """One reader's way: the answer is the library's, the grid comes when asked for, and every code sample runs."""
    assert not page.error
    model = models_by_tokenizer["byte_level"]
    config = MultiHopExampleConfig(target_layers=(page.slider(key="multi_hop ℓ*").value,))
    control = draw_unrelated(QUESTIONS[0], QUESTIONS, 0)
    results = multi_hop_example.run(model, QUESTIONS[0], control, config)
    assert get_said(page) == [
        {name: multi_hop.showing.escape(text) for name, text in row.items()} for row in multi_hop.tabulate(results)
    ]
    next(button for button in page.button if button.label.startswith("Patch all pairs")).click().run()
    for method in ("vanilla", "cot", "patchscope", "control", "placeholder"):
        # The grid stays without being asked for again.
        page.pills(key="multi_hop method").set_value(method).run()
        assert not page.exception
        assert not page.error
        assert any("ℓ\\*" in get_rows(page, number)[0] for number in range(len(page.table)))
        printed = run_code(page.code[-1].value, model).splitlines()
        if method in ("patchscope", "control", "placeholder"):
            assert len(printed) == len(results["layers"])
        else:
            assert results["methods"][method]["prompt"] in printed[0]


def test_each_input_changes_the_result_and_is_refused_where_it_is_wrong(page):
    said = [get_said(page)]

    def is_new():
        page.run()
        assert not page.exception
        assert not page.error, page.error
        said.append(get_said(page))
        return said[-1] not in said[:-1]

    page.slider(key="multi_hop ℓ*").set_value(0)
    assert is_new()
    page.text_input(key="multi_hop π2").set_value("The tallest tree of {}")
    assert is_new()
    page.text_input(key="multi_hop cue").set_value("was")
    assert is_new()
    page.pills(key="i").set_value(2)
    page.slider(key="ℓ").set_value((1, 2))
    assert is_new()
    assert [row["ℓ"] for row in said[-1]] == ["1", "2"]
    wrong = {
        "multi_hop answer": ("", "the answer is empty"),
        "multi_hop π2": ("Is {} in {}?", "once, where the first hop stands"),
        "S": ("the land of the yen", "stands in the question"),
    }
    for key, (value, message) in wrong.items():
        before = page.text_input(key=key).value
        page.text_input(key=key).set_value(value).run()
        assert not page.exception
        assert message in " ".join(error.value for error in page.error).replace("\\", "")
        page.text_input(key=key).set_value(before)
    assert not page.run().error


def test_without_a_model_all_but_the_result_is_there(open_page, monkeypatch):
    app = open_page()
    monkeypatch.setattr("patchscopes.tutorial.models.get", lambda name: None)
    go_to(app, "multi_hop")
    assert not app.error
    assert app.pills(key="multi_hop method").value == "vanilla"
    assert "Vicuna" in " ".join(markdown.value for markdown in app.markdown)


@pytest.mark.parametrize(
    ("source_prompt", "pi2", "cue"),
    [
        ("the country whose capital is Tokyo is ", "The official currency of {}", "is"),
        ("the country whose capital is Tokyo", " The official currency of {} is ", " is"),
        ("the country whose capital is Tokyo", "The official currency of", "is"),
    ],
)
def test_a_question_of_the_file_is_known_however_it_is_typed(source_prompt, pi2, cue):
    question = multi_hop.make_question(source_prompt, pi2, "yen", cue, QUESTIONS)
    assert question == QUESTIONS[0]
