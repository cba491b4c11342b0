"""The table of a prompt, and what a notebook shows of it."""

import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from conftest import CONTEXT

from patchscopes.baselines import LogitLens
from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representation
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import prompt_table
from patchscopes.experiments.config import PromptTableConfig
from patchscopes.experiments.next_token import build_lenses
from patchscopes.experiments.prompt_table import compare_with_own, tabulate_prompt
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.plots.prompt_table import COLOR_SCALES
from patchscopes.tokens import decode_each_token, has_added_bos, to_token_ids

PROMPT = "a <b>&big</b> $5\tdög"
TRAIN = TextSet("made up", "train", tuple(f"{n} dogs are {n * n} cats" for n in range(20)))


@pytest.fixture(scope="module")
def maps(llama):
    return {"tuned_lens": fit_affine_maps(llama, TRAIN)}


class TestTable:
    @pytest.mark.parametrize("lens", ["logit_lens", "tuned_lens", "token_identity", "simplescope"])
    @pytest.mark.parametrize("batch_size", [None, 7])
    def test_every_cell_is_a_call_of_its_own(self, llama, maps, lens, batch_size):
        table = tabulate_prompt(llama, PROMPT, lens, layers=(3, 0, 2), batch_size=batch_size, maps=maps).results
        tokens = to_token_ids(llama, PROMPT)
        own = llama(tokens[None])[0].log_softmax(dim=-1)
        assert table["positions"] == list(range(1, len(tokens)))
        assert table["tokens"] == decode_each_token(llama, tokens)[1:]
        read_logits, read = build_lenses(llama, [lens], maps)[lens], table["methods"][lens]
        for column, position in enumerate(table["positions"]):
            choice = int(own[position].argmax())
            assert table["own"]["top"][column] == decode_each_token(llama, [choice])[0]
            assert table["own"]["probability"][column] == pytest.approx(own[position, choice].exp().item(), abs=1e-5)
            for row, layer in enumerate([3, 0, 2]):
                state = extract_representation(llama, PROMPT, layer, position)
                said = read_logits(state[None], torch.tensor([layer]))[0].log_softmax(dim=-1)
                kl = (own[position].exp() * (own[position] - said)).sum().item()
                assert read["top"][row][column] == decode_each_token(llama, [int(said.argmax())])[0]
                assert read["probability"][row][column] == pytest.approx(said.max().exp().item(), abs=1e-5)
                assert read["rank"][row][column] == (said > said[choice]).sum()
                assert read["kl"][row][column] == pytest.approx(kl, abs=1e-4)

    def test_at_the_last_layer_the_logit_lens_is_the_model(self, tiny_models):
        for family in ("llama", "gpt2", "gemma2"):
            table = tabulate_prompt(tiny_models(family), PROMPT).results
            read = table["methods"]["logit_lens"]
            assert read["top"][-1] == table["own"]["top"]
            assert set(read["rank"][-1]) == {0}
            assert max(read["kl"][-1]) < 1e-5
            assert min(map(min, read["kl"])) >= 0
            assert max(read["kl"][0]) > 0.1

    def test_the_embedded_model(self, smollm):
        table = tabulate_prompt(smollm, "The capital of France is", "token_identity").results
        assert table["tokens"] == ["The", " capital", " of", " France", " is"]
        assert table["own"]["top"][-1] == table["methods"]["token_identity"]["top"][-1][-1] == " Paris"

    def test_rows_come_in_batches(self, llama):
        sizes = []

        def lens(rows, layers):
            sizes.append(len(rows))
            return LogitLens(llama)(rows, layers)

        tabulate_prompt(llama, "ten tokens", lens, batch_size=16)
        assert sizes == [16, 16, 8]

    def test_any_lens(self, llama):
        named, given = tabulate_prompt(llama, "dog"), tabulate_prompt(llama, "dog", LogitLens(llama))
        assert given.results["methods"] == {"LogitLens": named.results["methods"]["logit_lens"]}
        size = "3 tokens × 4 layers"
        assert repr(given) == f"PromptTable(LogitLens, {size}, {llama.cfg.model_name}, coloured by probability)"

    def test_the_experiment_is_the_same_table(self, llama, maps):
        config = PromptTableConfig(prompt="dog", lens="tuned_lens", color="rank", layers=(1, 2))
        table = tabulate_prompt(llama, "dog", "tuned_lens", layers=(1, 2), maps=maps)
        assert prompt_table.run(llama, config, maps=maps) == table.results

    def test_ties_and_distance(self):
        own = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log().clamp(min=-100)
        logits = torch.tensor([[1.0, 1.0, 1.0], [0.2, 0.3, 0.5]]).log()
        reading = compare_with_own(logits, own)
        assert reading.token.tolist() == [0, 2]
        assert reading.rank.tolist() == [0, 0]
        assert reading.probability.tolist() == pytest.approx([1 / 3, 0.5])
        assert reading.kl.tolist() == pytest.approx([math.log(3 / 2), 0.0], abs=1e-6)


class TestPositions:
    def test_bos_is_shown_if_asked_for(self, llama):
        assert tabulate_prompt(llama, "dog", bos=True).results["tokens"] == ["<s>", "d", "o", "g"]
        without, with_bos = (tabulate_prompt(llama, "dog", bos=bos).results["methods"] for bos in (False, True))
        for measure, table in without["logit_lens"].items():
            assert [row[1:] for row in with_bos["logit_lens"][measure]] == (
                table if measure == "top" else [pytest.approx(row, abs=1e-5) for row in table]
            )

    def test_what_the_user_writes_is_shown(self, llama):
        """Token ids, and a BOS token in the text, whether or not another one is put in front."""
        tokens = to_token_ids(llama, "dog").tolist()
        assert tabulate_prompt(llama, tokens).results["positions"] == [0, 1, 2, 3]
        assert tabulate_prompt(llama, "<s>dog").results["tokens"] == ["<s>", "d", "o", "g"]

    def test_bos_in_front(self, llama, models_by_tokenizer):
        for model in (llama, *models_by_tokenizer.values()):
            tokens = to_token_ids(model, "dog")
            assert has_added_bos(model, "dog", tokens) == (int(tokens[0]) == model.tokenizer.bos_token_id)
            assert not has_added_bos(model, "dog", tokens[1:])
            assert not has_added_bos(model, tokens, tokens)


class TestMistakes:
    @pytest.mark.parametrize(
        ("prompt", "options", "message"),
        [
            ("", {}, "the prompt is empty: give at least one character"),
            ("x" * CONTEXT, {}, f"has {CONTEXT + 1} tokens, the model reads at most {CONTEXT}; shorten it"),
            ("dog", {"lens": "magic"}, "no method is called 'magic'; choose from logit_lens,"),
            ("dog", {"lens": "tuned_lens"}, "tuned_lens needs its maps"),
            ("dog", {"color": "size"}, "cells cannot be coloured by 'size': choose from probability, rank, kl"),
            ("dog", {"layers": (4,)}, "layer 4 does not exist"),
        ],
    )
    def test_are_told_in_one_sentence(self, llama, prompt, options, message):
        with pytest.raises(PatchscopesError, match=message) as told:
            tabulate_prompt(llama, prompt, **options)
        assert "\n" not in str(told.value)

    def test_a_figure_has_an_end_and_a_table_has_none(self, llama):
        with pytest.raises(PatchscopesError, match="121 tokens, and a figure shows at most 120"):
            prompt_table.run(llama, PromptTableConfig(prompt="x" * 121))
        assert len(prompt_table.run(llama, PromptTableConfig(prompt="x" * 120))["tokens"]) == 120
        assert len(tabulate_prompt(llama, "x" * 200).results["tokens"]) == 200

    def test_overflow(self, llama):
        with pytest.raises(PatchscopesError, match="logits hold NaN or infinity in float32"):
            tabulate_prompt(llama, "dog", lambda rows, layers: LogitLens(llama)(rows, layers) * math.inf)


class Reader(HTMLParser):
    """The cells of a table of HTML, in rows; every tag must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.styles: list[dict[str, str]] = []

    def handle_starttag(self, tag, attributes):
        if tag == "br":
            self.handle_data("\n")
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "td":
            style = dict(attributes)["style"]
            self.styles.append(dict(part.split(":") for part in style.split(";")))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def read_html(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


class TestNotebook:
    @pytest.mark.parametrize("color", PromptTableConfig.COLORS)
    def test_shows_every_token_and_layer(self, llama, color):
        table = replace(tabulate_prompt(llama, "a\tbig <b>&amp;</b> ", layers=(0, 2)), color=color)
        html = table._repr_html_()
        heads, own, *layers = read_html(html).rows
        assert "".join(head[-1] for head in heads[1:]) == "a⇥big␣<b>&amp;</b>␣"
        assert [head.split("\n")[0] for head in heads[1:]] == [str(place) for place in table.results["positions"]]
        assert [row[0] for row in (heads, own, *layers)] == ["layer", "model", "2", "0"]
        assert {len(row) for row in (own, *layers)} == {len(table.results["tokens"]) + 1}
        # The texts of the prompt are no tags.
        assert "<b>&amp;" not in html
        assert COLOR_SCALES[color].label.split(" the model")[0] in html

    def test_is_readable_in_light_and_dark(self, llama):
        """A cell that has a colour says that of its text too, and nothing else has one."""
        html = tabulate_prompt(llama, "a big dog", "token_identity", color="kl")._repr_html_()
        cells = read_html(html).styles
        assert len(cells) == 9 * 5
        assert {cell["color"] for cell in cells} == {"black", "white"}
        assert html.count("background:#") == len(cells)
        for cell in cells:
            red, green, blue = (int(cell["background"][place : place + 2], 16) / 255 for place in (1, 3, 5))
            assert (cell["color"] == "black") == (0.3 * red + 0.6 * green + 0.1 * blue > 0.5)

    def test_needs_nothing_from_elsewhere(self, llama):
        html = tabulate_prompt(llama, "dog")._repr_html_()
        assert not any(word in html for word in ("<script", "<style", "<link", "http", "class=", "src="))

    def test_awkward_tokens(self, llama):
        table = tabulate_prompt(llama, "dog")
        tokens = ['"><script>', "\x00\u200b", "long" * 20]
        odd = replace(table, results=table.results | {"tokens": tokens})
        heads = read_html(odd._repr_html_()).rows[0]
        assert [head.partition("\n")[2] for head in heads[1:]] == ['"><script>', "U+0000U+200B", "long" * 5 + "lon…"]
