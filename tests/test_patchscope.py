"""The five choices as one object: what it says is what two lines of the rows primitive say."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from conftest import ROOT

import patchscopes
from patchscopes import Patchscope, TargetPrompt, load_model
from patchscopes.alignment import align_positions
from patchscopes.baselines import LogitLens, source_patchscope
from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.learned.fitting import fit_cross_model_maps
from patchscopes.learned.mappings import LayerMapping, norm_matched, scaled
from patchscopes.patch import Row, Write, generate_rows, patch_generate, patch_logits, patch_rows
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.tokens import decode_each_token

SOURCE = "Amazon's former CEO attended Oscars"
IDENTITY = build_token_identity_prompt()


@pytest.fixture
def patchscope(llama):
    return Patchscope(
        model=llama, source_prompt=SOURCE, source_position="CEO", target_prompt=IDENTITY, target_position="?"
    )


class TestSaysWhatTheRowsPrimitiveSays:
    def test_over_all_layers_at_once(self, llama, patchscope):
        position = decode_each_token(llama, llama.to_tokens(SOURCE)[0]).index("O", 10)
        vectors = extract_representations(llama, [SOURCE], [position])[0]
        target = placeholder_target(llama, IDENTITY)
        layers = [0, 1, 2, 3]
        assert patchscope.resolved_source_layers == layers
        torch.testing.assert_close(patchscope.logits(), patch_logits(target, vectors, layers))
        said = patch_generate(target, vectors, layers, max_new_tokens=6)
        assert patchscope.generate(6) == llama.tokenizer.batch_decode(said, skip_special_tokens=True)
        for top, logits in zip(patchscope.top_k(3), patchscope.logits(), strict=True):
            assert [one.token for one in top] == decode_each_token(llama, logits.topk(3).indices)
            assert 0 < top[-1].probability <= top[0].probability <= 1

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_with_either_engine(self, patchscope, engine):
        torch.testing.assert_close(patchscope.logits(engine=engine), patchscope.logits(), atol=1e-4, rtol=0)

    @pytest.mark.parametrize(
        ("target_layers", "expected"),
        [("same", [1, 3]), ("last", [3, 3]), ("embedding", [-1, -1]), (2, [2, 2]), ("2", [2, 2]), ([0, 2], [0, 2])],
    )
    def test_target_layers(self, patchscope, target_layers, expected):
        some = replace(patchscope, source_layers=(1, 3), target_layers=target_layers)
        assert some.resolved_target_layers == expected
        torch.testing.assert_close(some.logits(), patch_logits(some.target, some.vectors, expected))

    def test_without_a_target_prompt_t_is_s(self, llama):
        # The Logit Lens is T = S, i* = i, ℓ* = last.
        lens = Patchscope(model=llama, source_prompt=SOURCE, target_layers="last")
        assert torch.equal(lens.target.tokens, llama.to_tokens(SOURCE)[0])
        rows, layers = lens.vectors, torch.arange(4)
        torch.testing.assert_close(lens.logits(), LogitLens(llama)(rows, layers), atol=1e-5, rtol=0)
        torch.testing.assert_close(lens.logits(), source_patchscope(llama, SOURCE, -1)(rows, layers))
        inner = Patchscope(model=llama, source_prompt=SOURCE, source_position="CEO")
        assert inner.target.position == inner.source[1]
        # Written over itself, a state changes nothing.
        torch.testing.assert_close(inner.logits(), llama(SOURCE)[:, -1].expand(4, -1), atol=1e-4, rtol=0)

    def test_a_mapping_comes_before_writing(self, patchscope):
        doubled = replace(patchscope, mapping=lambda representations: 2 * representations)
        torch.testing.assert_close(doubled.vectors, 2 * patchscope.vectors)
        assert (doubled.logits() - patchscope.logits()).abs().max() > 1e-3

    def test_one_layer_alone(self, patchscope):
        alone = replace(patchscope, source_layers=2)
        torch.testing.assert_close(alone.logits(), patchscope.logits()[[2]], atol=1e-4, rtol=0)

    def test_another_model_takes_the_place_of_both(self, tiny_models, patchscope):
        other = tiny_models("mistral")
        assert replace(patchscope, model=other).target.model is other

    def test_token_ids_are_texts_too(self, llama, patchscope):
        tokens, position = patchscope.source
        by_ids = replace(patchscope, source_prompt=tokens.tolist(), source_position=position - len(tokens))
        torch.testing.assert_close(by_ids.logits(), patchscope.logits())


class TestHowStronglyIsWritten:
    def test_scale(self, patchscope):
        assert torch.equal(replace(patchscope, mapping=scaled(1.0)).vectors, patchscope.vectors)
        torch.testing.assert_close(replace(patchscope, mapping=scaled(-2.5)).vectors, -2.5 * patchscope.vectors)
        zero = replace(patchscope, mapping=scaled(0.0))
        torch.testing.assert_close(zero.logits(), patch_logits(zero.target, torch.zeros(4, 32), [0, 1, 2, 3]))

    @pytest.mark.parametrize("target_layers", ["same", "embedding", [3, 0, 3, 1]])
    def test_norm_of_what_is_replaced(self, llama, patchscope, target_layers):
        matched = replace(patchscope, mapping=norm_matched, target_layers=target_layers)
        layers = matched.resolved_target_layers
        replaced = extract_representations(llama, [IDENTITY], [matched.target.position], layers)[0]
        torch.testing.assert_close(matched.vectors.norm(dim=-1), replaced.norm(dim=-1))
        directions = torch.cosine_similarity(matched.vectors, patchscope.vectors, dim=-1)
        torch.testing.assert_close(directions, torch.ones(4))
        by_rows = patch_logits(matched.target, norm_matched(matched.target, layers)(patchscope.vectors), layers)
        torch.testing.assert_close(matched.logits(), by_rows)

    def test_a_state_over_itself_is_unchanged(self, llama):
        inner = Patchscope(model=llama, source_prompt=SOURCE, source_position="CEO", mapping=norm_matched)
        torch.testing.assert_close(inner.vectors, replace(inner, mapping=None).vectors)
        torch.testing.assert_close(inner.logits(), llama(SOURCE)[:, -1].expand(4, -1), atol=1e-4, rtol=0)

    def test_one_after_the_other(self, patchscope):
        matched = replace(patchscope, mapping=norm_matched)
        twice = replace(patchscope, mapping=(lambda h: h + 1, norm_matched, scaled(2.0)))
        torch.testing.assert_close(twice.vectors.norm(dim=-1), 2 * matched.vectors.norm(dim=-1))
        assert "f = <lambda>, then norm_matched, then scaled(2)" in repr(twice)
        # Whatever its norm was before.
        torch.testing.assert_close(replace(patchscope, mapping=(scaled(7.0), norm_matched)).vectors, matched.vectors)
        assert torch.equal(replace(patchscope, mapping=()).vectors, patchscope.vectors)


class TestSeveralPositions:
    PROMPT = "say _ or _ or _: x"

    @pytest.fixture
    def several(self, patchscope):
        return replace(patchscope, target_prompt=self.PROMPT, target_position=["_", "_", "_"])

    def test_are_rows_that_write_at_each(self, llama, several):
        tokens = llama.to_tokens(self.PROMPT)[0]
        positions = [place for place, text in enumerate(decode_each_token(llama, tokens)) if text == "_"]
        assert several.target_positions == positions
        assert several.target.position == positions[0]
        vectors = several.vectors
        rows = [
            Row(target=several.target, writes=tuple(Write(position=i, layer=layer, vector=vector) for i in positions))
            for layer, vector in enumerate(vectors)
        ]
        torch.testing.assert_close(several.logits(), patch_rows(rows))
        torch.testing.assert_close(several.logits(engine="hooks"), several.logits(), atol=1e-4, rtol=0)
        said = generate_rows(rows, max_new_tokens=5)
        assert several.generate(5) == llama.tokenizer.batch_decode(said, skip_special_tokens=True)
        assert several.top_k(1)[2][0].token == decode_each_token(llama, several.logits()[2].argmax()[None])[0]

    @pytest.mark.parametrize("position", ["_", -4, 0])
    def test_a_list_of_one_is_the_plain_case(self, several, position):
        plain, listed = (replace(several, target_position=one) for one in (position, [position]))
        assert listed.target_positions == plain.target_positions
        assert torch.equal(listed.logits(), plain.logits())
        assert listed.generate(4) == plain.generate(4)
        assert repr(listed) == repr(plain)
        # And what rows say.
        torch.testing.assert_close(patch_rows(plain.rows), plain.logits(), atol=1e-5, rtol=0)

    def test_words_and_numbers_in_any_order(self, several):
        mixed = replace(several, target_position=[-1, "_", 0, "or", "_"])
        assert mixed.target_positions == sorted(mixed.target_positions)
        assert len(mixed.target_positions) == 5
        shuffled = replace(several, target_position=["_", "or", 0, "_", -1, -1])
        assert shuffled.target_positions == mixed.target_positions
        two = replace(several, target_position=["_", "_"])
        assert two.target_positions == several.target_positions[1:]

    def test_each_has_the_norm_of_what_it_replaces(self, llama, several):
        matched = replace(several, mapping=norm_matched)
        for layer, row in enumerate(matched.rows):
            for write in row.writes:
                replaced = extract_representations(llama, [self.PROMPT], [write.position], [layer])[0, 0]
                torch.testing.assert_close(write.vector.norm(), replaced.norm())

    def test_are_shown(self, several):
        shown = ", ".join(f"{position} ('_')" for position in several.target_positions)
        assert f"i* = {shown}," in repr(several)
        assert shown.replace("'", "&#x27;") in several._repr_html_()


class TestRelevancy:
    def test_of_each_token(self, llama, patchscope):
        said = patchscope.generate(6, relevancy=True)
        assert [one.text for one in said] == patchscope.generate(6)
        patched = patchscope.logits().softmax(dim=-1)
        clean = llama(IDENTITY)[0, -1].softmax(dim=-1)
        for one, of_layer in zip(said, patched, strict=True):
            assert len(one.tokens) == len(one.relevancies)
            first = of_layer.argmax()
            assert one.relevancies[0] == pytest.approx((of_layer - clean)[first].item(), abs=1e-5)

    def test_at_several_positions(self, patchscope):
        several = replace(patchscope, target_position=["?", 3])
        said = several.generate(5, relevancy=True)
        assert [one.text for one in said] == several.generate(5)

    def test_only_of_the_most_likely_tokens(self, patchscope):
        with pytest.raises(PatchscopesError, match="temperature must be 0, got 0.5"):
            patchscope.generate(5, relevancy=True, temperature=0.5)
        with pytest.raises(PatchscopesError, match="temperature must be 0, got 1"):
            replace(patchscope, target_position=[1, 2]).generate(5, temperature=1.0)


class TestTwoModels:
    @pytest.fixture
    def pair(self, models_by_tokenizer):
        return models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]

    def test_a_layer_mapping_goes_between_them(self, pair):
        source, target = pair
        texts = TextSet("own", "train", tuple(f"the {n} cats saw {n * 7} dogs in the garden" for n in range(60)))
        maps = fit_cross_model_maps(source, target, texts, [0, 2], [1, 2])
        mapping = LayerMapping.between(source, target, maps, {0: 2, 2: 1})
        across = Patchscope(
            model=source,
            source_prompt=SOURCE,
            source_layers=(0, 2),
            target_model=target,
            target_prompt=IDENTITY,
            target_position="?",
            mapping=mapping,
            target_layers=(2, 1),
        )
        states = extract_representations(source, [SOURCE], [-1], [0, 2])[0]
        vectors = torch.stack([f(state) for f, state in zip((maps[0, 2, 0], maps[2, 1, 0]), states, strict=True)])
        expected = patch_logits(placeholder_target(target, IDENTITY), vectors, [2, 1])
        torch.testing.assert_close(across.logits(), expected)
        # However a vector is written, it goes through the map first.
        weaker = replace(across, mapping=(mapping, scaled(0.5)))
        torch.testing.assert_close(weaker.vectors, 0.5 * across.vectors)
        as_long = replace(across, mapping=(mapping, norm_matched))
        replaced = extract_representations(target, [IDENTITY], [across.target.position], [2, 1])[0]
        torch.testing.assert_close(as_long.vectors.norm(dim=-1), replaced.norm(dim=-1))
        with pytest.raises(PatchscopesError, match="2 LayerMappings go from"):
            replace(across, mapping=(mapping, mapping))
        with pytest.raises(PatchscopesError, match="the map from layer 0 goes to layer 2, and .* written at layer 1"):
            replace(across, target_layers=1)
        with pytest.raises(PatchscopesError, match="no map from layer 1, only from"):
            replace(across, source_layers=(0, 1))
        with pytest.raises(PatchscopesError, match="no map from layer 0 to layer 0"):
            LayerMapping.between(source, target, maps, {0: 0})
        with pytest.raises(PatchscopesError, match="learned from"):
            LayerMapping.between(target, source, maps, {0: 2})

    def test_t_is_s_where_both_have_read_the_same(self, pair):
        source, target = pair
        aligned = dict(align_positions(source, target, SOURCE))
        n_tokens = len(source.to_tokens(SOURCE)[0])
        for position in range(1, n_tokens):
            fields = {"source_position": position, "target_model": target, "mapping": lambda h: h[:, :24]}
            if position in aligned:
                across = Patchscope(model=source, source_prompt=SOURCE, source_layers=[0], **fields)
                assert across.target.position == aligned[position]
            else:
                with pytest.raises(PatchscopesError, match="ends where token .* give T, or another position"):
                    Patchscope(model=source, source_prompt=SOURCE, **fields)
        assert 1 < len(aligned) < n_tokens
        with pytest.raises(PatchscopesError, match="give S as a text"):
            Patchscope(model=source, source_prompt=[5, 6], target_model=target, mapping=lambda h: h[:, :24])

    def test_other_widths_need_a_mapping(self, pair):
        with pytest.raises(PatchscopesError, match="24 wide and the source model 32: give a mapping"):
            Patchscope(model=pair[0], source_prompt="a dog", source_layers=[0], target_model=pair[1])
        with pytest.raises(PatchscopesError, match="24 wide and the source model 32: give a mapping"):
            Patchscope(
                model=pair[0],
                source_prompt="a dog",
                source_layers=[0],
                target_model=pair[1],
                mapping=(scaled(2.0), norm_matched),
            )


class TestShown:
    def test_as_the_papers_table(self, patchscope):
        shown = patchscope._repr_html_()
        for symbol in ("S", "i", "M", "ℓ", "T", "i*", "f", "M*", "ℓ*"):
            assert f">{symbol}</th>" in shown
        assert "0–3" in shown
        assert "-&gt;" in shown
        assert "identity" in repr(patchscope)
        assert "ℓ* = same" in repr(patchscope)
        assert "ℓ = 0, 2" in repr(replace(patchscope, source_layers=(0, 2)))

    def test_it_is_frozen(self, patchscope):
        with pytest.raises(FrozenInstanceError):
            patchscope.target_layers = "last"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source_position": "CFO"}, "'CFO' is not in the text"),
        ({"source_position": 99}, "position 99 does not exist"),
        ({"target_position": "!"}, "has no placeholder '!'"),
        ({"source_layers": [7]}, "layer 7 does not exist"),
        ({"target_layers": "first"}, "must be same, embedding, last or a number"),
        ({"target_layers": 9}, "layer 9 does not exist"),
        ({"target_layers": [1, 2]}, "2 target layers were given for 4 source layers"),
        ({"target_layers": "--5"}, "must be same, embedding, last or a number"),
        ({"source_layers": 5}, "layer 5 does not exist"),
        ({"target_position": []}, "list of target positions is empty"),
        ({"target_position": ["?", 99]}, "position 99 does not exist"),
        ({"target_position": ["?", "?"]}, "'[?]' is in the text 1 times, not at -2"),
        ({"target_prompt": [5, 6], "target_position": ["a"]}, "'[$]%' has no placeholder 'a'"),
        ({"source_prompt": [5, 6], "source_position": "a"}, "'a' is not in the text; its tokens are"),
        ({"source_prompt": [[5, 6], [7, 8]]}, "give one text at a time"),
    ],
)
def test_what_is_wrong_is_said_at_once(patchscope, fields, message):
    with pytest.raises(PatchscopesError, match=message):
        replace(patchscope, **fields)


@pytest.mark.parametrize("k", [0, 301])
def test_more_tokens_than_there_are_or_none(patchscope, k):
    with pytest.raises(PatchscopesError, match=f"300 tokens, {k} most likely ones were asked for: give 1 to 300"):
        patchscope.top_k(k)


class TestTopLevel:
    def test_names(self):
        assert patchscopes.load_model is load_model
        assert patchscopes.TargetPrompt is TargetPrompt
        assert patchscopes.EMBEDDING == -1
        assert set(patchscopes.__all__) <= set(dir(patchscopes))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = patchscopes.nothing

    def test_importing_it_is_quick_and_brings_nothing_heavy(self):
        code = (
            "import time; t = time.perf_counter(); import sys, patchscopes; t = time.perf_counter() - t; "
            "assert not {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules); print(t)"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert float(ran.stdout) < 0.2


def test_generating_can_be_followed_token_by_token(llama):
    steps = []

    def watch(members):
        for member in members:
            steps.append(member)
            yield member

    patchscope = Patchscope(model=llama, source_prompt="abc", source_position=1, target_prompt="x is ?")
    assert patchscope.generate(4, progress=watch) == patchscope.generate(4)
    assert steps == list(range(4))
