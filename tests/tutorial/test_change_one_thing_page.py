"""The free page: nine inputs, two Patchscopes side by side, and an address that says it all."""

import pytest
from tutorial_app import go_to

from patchscopes.learned.mappings import norm_matched, scaled
from patchscopes.patchscope import Patchscope
from patchscopes.tutorial.signs import escape

LONGER = "My brother came to us from Canada in May"
BASE = {
    "source_prompt": "My sister moved to Japan last year",
    "source_position": "Japan",
    "target_prompt": "The official currency of x",
    "target_position": "x",
    "target_layers": 0,
}


def list_said(app, number=0):
    """What each layer says, in the table of the first or the second Patchscope, below what T alone says."""
    tables = [table.value for table in app.table if "it says" in table.value.columns]
    assert tables[number]["ℓ"].iloc[0] == "unpatched"
    return list(tables[number]["it says"])[1:]


def read_with_library(model, n_tokens=8, **changed):
    return [escape(words) for words in Patchscope(model=model, **BASE | changed).generate(n_tokens)]


@pytest.fixture
def tiny(models_by_tokenizer):
    return models_by_tokenizer["byte_level"]


def test_answers_as_the_library_does(open_page, tiny):
    app = open_page("change_one_thing")
    assert list_said(app) == read_with_library(tiny)
    app.text_area(key="T").set_value("cat -> cat\n?").run()
    app.text_input(key="i*").set_value("?").run()
    app.text_input(key="ℓ*").set_value("same").run()
    app.slider(key="n").set_value(3).run()
    expected = read_with_library(tiny, 3, target_prompt="cat -> cat\n?", target_position="?", target_layers="same")
    assert list_said(app) == expected


@pytest.mark.parametrize(
    ("symbol", "value", "changed"),
    [
        ("S", LONGER, {"source_prompt": LONGER, "source_position": 11}),
        ("i", "3", {"source_position": 3}),
        ("i", "moved", {"source_position": "moved"}),
        ("ℓ", "1,3", {"source_layers": [1, 3]}),
        ("ℓ", "embedding", {"source_layers": -1}),
        ("T", "I like x", {"target_prompt": "I like x"}),
        ("i*", "-3", {"target_position": -3}),
        ("f", "norm_matched", {"mapping": norm_matched}),
        ("ℓ*", "last", {"target_layers": "last"}),
    ],
)
def test_each_thing_can_be_changed_beside_the_first(open_page, tiny, symbol, value, changed):
    app = open_page("change_one_thing")
    app.pills(key="changed").set_value([symbol]).run()
    assert not app.exception
    # Until it is changed, the second is the first.
    assert list_said(app, 1) == list_said(app, 0)
    widget = next(
        one for kind in (app.text_input, app.text_area, app.selectbox) for one in kind if one.key == f"B{symbol}"
    )
    widget.set_value(value).run()
    assert not app.exception
    assert list_said(app, 0) == read_with_library(tiny)
    assert list_said(app, 1) == read_with_library(tiny, **changed)
    # A link with this state says the same.
    linked = open_page("change_one_thing", **app.query_params)
    assert list_said(linked, 1) == list_said(app, 1)
    assert linked.query_params == app.query_params


def test_scaling(open_page, tiny):
    app = open_page("change_one_thing", f="scaled", α="3.5")
    assert list_said(app) == read_with_library(tiny, mapping=scaled(3.5))


def test_another_model(open_page, models_by_tokenizer, llama, tiny_models):
    by_name = {"one": llama, "two": tiny_models("mistral")}
    app = open_page("change_one_thing", by_name=by_name)
    app.pills(key="changed").set_value(["M*"]).run()
    app.selectbox(key="BM*").set_value("two").run()
    assert list_said(app, 1) == read_with_library(llama, target_model=by_name["two"])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("i*", "absent", "has no placeholder 'absent'"),
        ("i*", "99", "position 99 does not exist"),
        ("ℓ*", "seven", "target layer must be same, embedding, last or a number, got 'seven'"),
        ("ℓ*", "99", "layer 99 does not exist"),
        ("T", "word " * 600, "the model reads at most"),
        ("Bℓ", "3-1", "expected layers like"),
        ("Bℓ", "0-99999999999", "expected layers like"),
        ("i*", "9" * 5000, "has no placeholder"),
        ("ℓ*", "9" * 5000, "target layer must be"),
        ("Bi", "absent", "'absent' is not in the text"),
    ],
)
def test_what_is_wrong_is_told_in_the_library_s_words(open_page, key, value, told):
    app = open_page("change_one_thing")
    app.pills(key="changed").set_value(["i", "ℓ"]).run()
    next(one for kind in (app.text_input, app.text_area) for one in kind if one.key == key).set_value(value).run()
    assert not app.exception
    assert any(told in error.value.replace("\\", "") for error in app.error)


def test_two_widths_need_a_map(open_page, models_by_tokenizer):
    by_name = {"one": models_by_tokenizer["byte_level"], "two": models_by_tokenizer["sentencepiece_like"]}
    app = open_page("change_one_thing", by_name=by_name, **{"M*": "two"})
    assert "give a mapping between them" in app.error[0].value


def test_its_code_says_the_same(open_page, run_code, tiny):
    app = open_page("change_one_thing", f="norm_matched")
    printed = run_code(app.code[0].value, tiny)
    said = Patchscope(model=tiny, **BASE, mapping=norm_matched).generate(8)
    assert printed == "".join(f"{layer} {words}\n" for layer, words in enumerate(said))


def test_known_target_prompts(open_page, tiny):
    app = open_page("change_one_thing")
    app.button(key="use Simplescope").click().run()
    expected = read_with_library(tiny, target_prompt="?", target_position="?", target_layers="same")
    assert list_said(app) == expected


def test_its_inputs_are_there_after_a_look_at_another_page(open_page):
    app = open_page("change_one_thing")
    app.text_area(key="T").set_value("I like x").run()
    app.pills(key="changed").set_value(["i*"]).run()
    app.text_input(key="Bi*").set_value("like").run()
    address = dict(app.query_params)
    go_to(app, "start")
    assert "T" not in app.query_params
    go_to(app, "change_one_thing")
    assert app.query_params == address


def test_downloads_are_the_library_s_frame(open_page):
    app = open_page("change_one_thing")
    buttons = {button.key: button for button in app.download_button}
    assert set(buttons) == {"patchscope_first.json", "patchscope_first.png"}


@pytest.mark.parametrize("layers", ["all", "embedding,1"])
def test_the_code_reads_the_layers_that_are_chosen(open_page, run_code, tiny, layers):
    app = open_page("change_one_thing", **{"Bℓ": layers})
    printed = run_code(app.code[1].value, tiny)
    assert printed.count("\n") >= len(list_said(app, 1))


def test_a_factor_that_is_none_is_left_alone(open_page):
    app = open_page("change_one_thing", f="scaled", α="nan", **{"Bf": "identity"})
    assert not app.error
    assert app.number_input(key="α").value == 1.0
