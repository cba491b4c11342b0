"""The page on reading across models, as a reader uses it."""

import pytest
from tutorial_app import go_to

from patchscopes.alignment import align_positions
from patchscopes.data.texts import TextSet
from patchscopes.experiments import cross_model_example
from patchscopes.experiments.config import CrossModelConfig
from patchscopes.learned.fitting import fit_cross_model_maps
from patchscopes.tutorial.pages import cross_model
from patchscopes.tutorial.signs import escape

TRAIN = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(40)))
BY_NAME = {"one": "byte_level", "other": "sentencepiece_like"}


@pytest.fixture
def page(open_page, models_by_tokenizer, monkeypatch, tmp_path):
    """Two tiny models that differ in everything, few texts to fit f on, and an empty cache folder."""
    monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
    monkeypatch.setattr("patchscopes.data.texts.load_texts", lambda **options: TRAIN)
    return open_page("cross_model", {name: models_by_tokenizer[kind] for name, kind in BY_NAME.items()})


def ask(app, beginning):
    """Click the button whose label begins so."""
    next(button for button in app.button if button.label.startswith(beginning)).click().run()
    assert not app.exception, app.exception
    assert not app.error, app.error
    return app


def find_table(app, column):
    """The rows of the table that has a column."""
    tables = [table.value.to_dict("records") for table in app.table]
    return next(rows for rows in tables if column in rows[0])


def test_page(page, models_by_tokenizer, run_code, monkeypatch):
    """One reader's way: fit f, read, describe, and run every code sample."""
    ask(page, "Fit the maps from one to other")
    source, target = (models_by_tokenizer[kind] for kind in BY_NAME.values())
    maps = fit_cross_model_maps(source, target, TRAIN, range(4), range(3))
    prompt, position = page.text_input(key="S").value, page.pills(key="i").value
    results = cross_model_example.run(source, target, prompt, position, CrossModelConfig(), maps=maps)
    del results["methods"]["simplescope"]
    expected = [{escape(name): escape(text) for name, text in row.items()} for row in cross_model.tabulate(results)]
    assert find_table(page, escape("ℓ* = 0")) == expected
    ask(page, "Ask both models")
    assert len(find_table(page, escape("M* says"))) == 4

    monkeypatch.setattr("patchscopes.load_model", lambda name: models_by_tokenizer[BY_NAME[name]])
    for method in ("cross_model", "cross_model_description", "target_model_alone"):
        page.pills(key="cross_model method").set_value(method).run()
        assert not page.exception
        namespace: dict = {}
        exec(compile(page.code[-1].value, "a code sample", "exec"), namespace)
        if method == "cross_model":
            column = [dict(results["pairs"])[layer] for layer in results["layers"]]
            said = [
                results["methods"]["token_identity"]["token"][row][results["target_layers"].index(target_layer)]
                for row, target_layer in enumerate(column)
            ]
            assert [top[0].token for top in namespace["patchscope"].top_k(1)] == said
        if method == "target_model_alone":
            assert namespace["seen"] == dict(align_positions(source, target, prompt)).get(position)
    # Without asking: what has been fitted is in the cache folder.
    from patchscopes.tutorial import work

    work.forget()
    page.run()
    assert find_table(page, escape("ℓ* = 0")) == expected


def test_each_input_changes_the_result(page):
    """M that reads itself needs no map; and where only layers without maps are chosen, that is said."""
    page.selectbox(key="cross_model M*").set_value("one").run()
    assert not page.error
    read = [find_table(page, escape("ℓ* = 0"))]
    changes = (
        (page.segmented_control, "cross_model T", "simplescope"),
        (page.pills, "i", 2),
        (page.slider, "ℓ", (1, 2)),
        (page.text_input, "S", "Barack Obama"),
    )
    for kind, key, value in changes:
        kind(key=key).set_value(value).run()
        assert not page.exception, page.exception
        assert not page.error, page.error
        read.append(find_table(page, escape("ℓ* = 0")))
        assert read[-1] not in read[:-1]
    assert [row["ℓ"] for row in read[-1]] == ["1", "2"]
    page.text_input(key="S").set_value("x " * 600).run()
    assert "shorten it" in page.error[0].value
    assert not page.exception


def test_one_model_is_told_how_to_get_another(open_page, monkeypatch):
    app = open_page("cross_model")
    assert "make setup-cross-model" in app.info[0].value
    assert find_table(app, escape("ℓ* = 0"))
    monkeypatch.setattr("patchscopes.tutorial.models.get", lambda name: None)
    go_to(app, "cross_model")
    assert not app.error
    assert app.pills(key="cross_model method").value == "cross_model"
