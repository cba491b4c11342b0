"""The engine: the fast engine against plain hooks, and properties that any patching must have."""

import warnings

import pytest
import torch
from conftest import CONTEXT, FAMILIES, KINDS, VOCABULARY, make_hf_model
from hypothesis import given
from hypothesis import strategies as st

from patchscopes.engine import fast
from patchscopes.engine.extract import extract_representation, extract_representations
from patchscopes.engine.generation import choose_tokens, find_most_likely
from patchscopes.engine.proof import find_fast_engine_failure
from patchscopes.engine.target import TargetPrompt
from patchscopes.engine.unembedding import logit_lens
from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import EMBEDDING, get_hook_name
from patchscopes.model.loading import load_model
from patchscopes.patch import (
    generate_with_patch,
    patch_generate,
    patch_logits,
    patch_logits_ahead_in_batches,
    run_with_patch,
)
from patchscopes.tokens import decode_each_token, get_end_tokens

TOKENS = torch.arange(20, 32)
LAYERS = [EMBEDDING, 0, 1, 2, 3]
# Last, second to last, inner, first.
POSITIONS = (-1, -2, 5, 0)


def random_rows(model, n_rows: int, seed: int = 0):
    """Vectors of the size of the model's own representations, and layers in any order and mix."""
    generator = torch.Generator().manual_seed(seed)
    own = extract_representations(model, [TOKENS], [-1], LAYERS)[0]
    layers = torch.randint(EMBEDDING, model.cfg.n_layers, (n_rows,), generator=generator)
    noise = torch.randn(n_rows, model.cfg.d_model, generator=generator)
    return noise * own[layers + 1].std(dim=-1, keepdim=True), layers


def ahead(target, vectors, layers, engine, **options):
    """Logits of the next three tokens."""
    return patch_logits_ahead_in_batches(target, vectors, layers, 3, engine=engine, **options)


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    @pytest.mark.parametrize("position", POSITIONS)
    def test_fast_equals_hooks(self, tiny_models, family, position):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, position)
        vectors, layers = random_rows(model, 17)
        fast_logits = patch_logits(target, vectors, layers, engine="fast")
        hooks_logits = patch_logits(target, vectors, layers, engine="hooks")
        assert (fast_logits - hooks_logits).abs().max() < 1e-3
        assert torch.equal(fast_logits.argmax(dim=-1), hooks_logits.argmax(dim=-1))
        # The patches matter: at the embedding all blocks still see them.
        changed = (hooks_logits - model(TOKENS[None])[0, -1])[layers == EMBEDDING].abs().amax(dim=-1)
        assert len(changed) > 0
        assert changed.min() > 1e-4

    @pytest.mark.parametrize("position", [-1, 5])
    def test_same_generation(self, tiny_models, family, position):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, position)
        vectors, layers = random_rows(model, 7)
        answers = [patch_generate(target, vectors, layers, max_new_tokens=6, engine=e) for e in ("fast", "hooks")]
        assert torch.equal(*answers)

    def test_auto_proves_the_fast_engine(self, tiny_models, family):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert find_fast_engine_failure(TargetPrompt(tiny_models(family), TOKENS)) is None

    def test_extraction_is_the_plain_cache(self, tiny_models, family):
        model = tiny_models(family)
        texts = [TOKENS, TOKENS[:4], TOKENS.flip(0), TOKENS]
        positions = [-1, 2, 6, 3]
        layers = [2, EMBEDDING, 0]
        batched = extract_representations(model, texts, positions, layers, batch_size=3)
        for row, (text, position) in enumerate(zip(texts, positions, strict=True)):
            _, cache = model.run_with_cache(text[None])
            plain = torch.stack([cache[get_hook_name(layer)][0, position] for layer in layers])
            torch.testing.assert_close(batched[row], plain, atol=1e-5, rtol=1e-5)


class TestLogits:
    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_they_hold_no_more_memory_than_their_own(self, llama, engine):
        vectors, layers = random_rows(llama, 5)
        logits = patch_logits(TargetPrompt(llama, TOKENS), vectors, layers, engine=engine)
        assert logits.untyped_storage().nbytes() == logits.nbytes

    def test_a_bias_that_becomes_other_than_zero_counts(self, tokenizer):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer)
        vectors, layers = random_rows(model, 5)
        target = TargetPrompt(model, TOKENS)
        before = patch_logits(target, vectors, layers, engine="fast")
        bias = torch.linspace(-1, 1, VOCABULARY)
        # TransformerLens gives every unembedding without a bias one of zeros.
        model.unembed.original_component.bias.copy_(bias)
        after = patch_logits(target, vectors, layers, engine="fast")
        torch.testing.assert_close(after, before + bias, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after, patch_logits(target, vectors, layers, engine="hooks"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", KINDS)
class TestKinds:
    @pytest.mark.parametrize("position", [-1, 5, 0])
    def test_soft_prompts_fast_equals_hooks(self, tiny_models, family, position):
        model = tiny_models(family)
        vectors, layers = random_rows(model, 9)
        soft_prompt = random_rows(model, len(TOKENS), seed=1)[0]
        target = TargetPrompt(model, TOKENS, position, soft_prompt=soft_prompt)
        answers = [torch.cat(list(ahead(target, vectors, layers, engine))) for engine in ("fast", "hooks")]
        torch.testing.assert_close(*answers, atol=1e-3, rtol=0)
        # It matters what the prompt is, but not which tokens lie under it.
        plain = torch.cat(list(ahead(TargetPrompt(model, TOKENS, position), vectors, layers, "hooks")))
        if position != 0:
            assert (plain - answers[1]).abs().max() > 1e-3
        others = TargetPrompt(model, TOKENS.flip(0), position, soft_prompt=soft_prompt)
        torch.testing.assert_close(torch.cat(list(ahead(others, vectors, layers, "fast"))), answers[0])

    def test_a_soft_prompt_of_the_tokens_own_vectors_changes_nothing(self, tiny_models, family):
        model = tiny_models(family)
        vectors, layers = random_rows(model, 5)
        own = extract_representations(model, [TOKENS] * 12, list(range(12)), [EMBEDDING])[:, 0]
        hard, soft = TargetPrompt(model, TOKENS), TargetPrompt(model, TOKENS, soft_prompt=own)
        torch.testing.assert_close(patch_logits(soft, vectors, layers), patch_logits(hard, vectors, layers))

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_logits_ahead_are_those_of_the_generation(self, tiny_models, family, engine):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, 5)
        vectors, layers = random_rows(model, 7)
        logits = torch.cat(list(ahead(target, vectors, layers, engine, batch_size=3)))
        assert logits.shape == (7, 3, VOCABULARY)
        torch.testing.assert_close(
            logits[:, 0], patch_logits(target, vectors, layers, engine=engine), atol=1e-4, rtol=1e-4
        )
        generated = patch_generate(target, vectors, layers, max_new_tokens=3, engine=engine)
        for said, padded in zip(logits.argmax(dim=-1).tolist(), generated.tolist(), strict=True):
            ends = get_end_tokens(model).tolist()
            n_same = next((step + 1 for step, token in enumerate(padded) if token in ends), 3)
            assert said[:n_same] == padded[:n_same]

    def test_one_row_equals_many(self, tiny_models, family):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, 5)
        vectors, layers = random_rows(model, 6)
        together = patch_logits(target, vectors, layers, engine="fast")
        alone = [patch_logits(target, vectors[[row]], layers[[row]], engine="fast") for row in range(6)]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
        in_twos = patch_logits(target, vectors, layers, engine="fast", batch_size=2)
        torch.testing.assert_close(together, in_twos, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_a_state_patched_onto_itself_changes_nothing(self, tiny_models, family, engine):
        model = tiny_models(family)
        clean = model(TOKENS[None])[0, -1]
        for position in POSITIONS:
            own = extract_representations(model, [TOKENS], [position], LAYERS)[0]
            logits = patch_logits(TargetPrompt(model, TOKENS, position), own, LAYERS, engine=engine)
            torch.testing.assert_close(logits, clean.expand_as(logits), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_last_layer_at_its_own_position_is_the_logit_lens(self, tiny_models, family, engine):
        model = tiny_models(family)
        vectors, _ = random_rows(model, 5)
        last = [model.cfg.n_layers - 1] * 5
        logits = patch_logits(TargetPrompt(model, TOKENS), vectors, last, engine=engine)
        torch.testing.assert_close(logits, logit_lens(model, vectors), atol=1e-4, rtol=0)

    def test_logit_lens_of_the_last_layer_is_the_models_prediction(self, tiny_models, family):
        model = tiny_models(family)
        states = extract_representations(model, [TOKENS] * 3, [2, 7, -1], [model.cfg.n_layers - 1])[:, 0]
        torch.testing.assert_close(logit_lens(model, states), model(TOKENS[None])[0, [2, 7, -1]], atol=1e-4, rtol=0)

    def test_weights_edited_in_place_are_seen_by_both_engines(self, tokenizer, family):
        model = load_model(hf_model=make_hf_model(family, seed=1), tokenizer=tokenizer)
        target = TargetPrompt(model, TOKENS)
        vectors, layers = random_rows(model, 5)
        before = patch_logits(target, vectors, layers, engine="fast")
        for parameter in model.original_model.parameters():
            parameter.data.mul_(1.1)
        edited = TargetPrompt(model, TOKENS)
        after = patch_logits(edited, vectors, layers, engine="fast")
        torch.testing.assert_close(after, patch_logits(edited, vectors, layers, engine="hooks"), atol=1e-3, rtol=0)
        assert (after - before).abs().max() > 1e-3


class TestRealModel:
    PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"

    @pytest.mark.parametrize("position", [-1, -4, 3])
    def test_fast_equals_hooks(self, smollm, position):
        texts = ["The capital of France is Paris", "Amazon's former CEO attended Oscars"]
        source_layers = [EMBEDDING, 0, 9, 17, 28, 29]
        vectors = extract_representations(smollm, texts, [-1, 3], source_layers).flatten(0, 1)
        layers = [29, 3, EMBEDDING, 11, 0, 28] * 2
        target = TargetPrompt(smollm, self.PROMPT, position)
        fast_logits = patch_logits(target, vectors, layers, engine="fast")
        hooks_logits = patch_logits(target, vectors, layers, engine="hooks")
        assert (fast_logits - hooks_logits).abs().max() < 1e-3
        assert torch.equal(fast_logits.argmax(dim=-1), hooks_logits.argmax(dim=-1))

    def test_same_generation(self, smollm):
        vectors = extract_representations(smollm, ["Amazon's former CEO"], [-1], [0, 8, 20])[0]
        target = TargetPrompt(smollm, self.PROMPT)
        answers = [patch_generate(target, vectors, [0, 8, 20], max_new_tokens=5, engine=e) for e in ("fast", "hooks")]
        assert torch.equal(*answers)

    def test_a_state_patched_onto_itself_changes_nothing(self, smollm):
        clean = smollm(self.PROMPT)[0, -1]
        layers = [EMBEDDING, 0, 15, 29]
        own = extract_representations(smollm, [self.PROMPT], [-1], layers)[0]
        logits = patch_logits(TargetPrompt(smollm, self.PROMPT), own, layers)
        torch.testing.assert_close(logits, clean.expand_as(logits), atol=1e-3, rtol=0)

    def test_token_identity_repeats_the_token(self, smollm):
        vector = extract_representation(smollm, "Amazon's former CEO attended Oscars", 2, 4)
        words, _ = generate_with_patch(smollm, self.PROMPT, -1, vector, layer=2)
        assert "".join(words).startswith(" -> CEO")


class TestSingleCalls:
    def test_run_with_patch_is_one_row_of_patch_logits(self, llama):
        vectors, _ = random_rows(llama, 1)
        everywhere = run_with_patch(llama, TOKENS, 5, vectors[0], layer=1)
        assert everywhere.shape == (1, len(TOKENS), VOCABULARY)
        row = patch_logits(TargetPrompt(llama, TOKENS, 5), vectors, [1], engine="hooks")
        torch.testing.assert_close(everywhere[:, -1], row)
        torch.testing.assert_close(everywhere[:, :5], llama(TOKENS[None])[:, :5])

    def test_generate_with_patch_is_one_row_of_patch_generate(self, llama):
        vectors, _ = random_rows(llama, 1)
        words, tokens = generate_with_patch(llama, "abc?", -1, vectors[0], max_new_tokens=4, layer=2)
        row = patch_generate(TargetPrompt(llama, "abc?"), vectors, [2], max_new_tokens=4)[0]
        assert torch.equal(tokens, row[: len(tokens)])
        assert words == decode_each_token(llama, tokens)

    def test_the_default_layer_is_the_embedding(self, llama):
        vectors, _ = random_rows(llama, 1)
        torch.testing.assert_close(
            run_with_patch(llama, TOKENS, -1, vectors[0])[:, -1],
            patch_logits(TargetPrompt(llama, TOKENS), vectors, [EMBEDDING]),
            atol=1e-4,
            rtol=0,
        )

    def test_text_and_its_token_ids_are_the_same(self, llama):
        ids = llama.to_tokens("some text")[0]
        for text in (ids, ids.tolist(), ids[None]):
            assert torch.equal(TargetPrompt(llama, text).tokens, TargetPrompt(llama, "some text").tokens)


class TestEndOfSequence:
    @pytest.fixture
    def ending_rows(self, llama, monkeypatch):
        """Rows of which some end early, because a token that they produce is declared an end."""
        target = TargetPrompt(llama, TOKENS)
        vectors, layers = random_rows(llama, 12)
        free = patch_generate(target, vectors, layers, max_new_tokens=8)
        end = int(free[3, 2])
        monkeypatch.setattr(llama.original_model.generation_config, "eos_token_id", [end, 299])
        return target, vectors, layers, free, end

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_rows_are_padded_after_their_end(self, ending_rows, engine):
        target, vectors, layers, free, end = ending_rows
        tokens = patch_generate(target, vectors, layers, max_new_tokens=8, engine=engine)
        assert end in get_end_tokens(target.model)
        ended = 0
        for row, expected in zip(tokens.tolist(), free.tolist(), strict=True):
            if end in expected:
                first = expected.index(end)
                expected[first:] = [end] * (8 - first)
                ended += 1
            assert row == expected
        assert ended > 0

    def test_a_single_row_stops_at_its_end(self, ending_rows):
        target, vectors, layers, _, end = ending_rows
        words, tokens = generate_with_patch(target.model, TOKENS, -1, vectors[3], 8, layer=int(layers[3]))
        assert tokens[-1] == end
        assert len(words) == len(tokens) <= 3


class TestSampling:
    def test_draws_depend_on_neither_engine_nor_batch_size(self, llama):
        target = TargetPrompt(llama, TOKENS)
        vectors, layers = random_rows(llama, 9)
        answers = []
        for options in ({"engine": "fast"}, {"engine": "hooks"}, {"engine": "fast", "batch_size": 2}):
            torch.manual_seed(5)
            answers.append(patch_generate(target, vectors, layers, max_new_tokens=5, temperature=1.0, **options))
        assert torch.equal(answers[0], answers[1])
        assert torch.equal(answers[0], answers[2])
        torch.manual_seed(6)
        other = patch_generate(target, vectors, layers, max_new_tokens=5, temperature=1.0)
        assert not torch.equal(answers[0], other)

    def test_frequencies_follow_the_distribution(self):
        probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
        draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
        chosen = choose_tokens(probabilities.log().expand(20_000, 4), 1.0, draws)
        frequencies = torch.bincount(chosen, minlength=4) / 20_000
        torch.testing.assert_close(frequencies, probabilities, atol=0.02, rtol=0)

    def test_low_temperature_is_greedy(self, llama):
        target = TargetPrompt(llama, TOKENS)
        vectors, layers = random_rows(llama, 5)
        greedy = patch_generate(target, vectors, layers, max_new_tokens=3)
        assert torch.equal(patch_generate(target, vectors, layers, max_new_tokens=3, temperature=1e-6), greedy)


@given(
    n_tokens=st.sampled_from([1, 7, 511, 512, 513, 1024, 1500]),
    # Few different values: most rows have their largest more than once.
    n_values=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_the_most_likely_token_is_the_first_with_the_largest_logit(n_tokens, n_values, dtype, seed):
    logits = torch.randint(-n_values, 0, (5, n_tokens), generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert find_most_likely(logits).tolist() == expected


class HookedOnly:
    """What a HookedTransformer of TransformerLens 3 has in common with a bridge."""

    def __init__(self, bridge):
        names = (
            "cfg",
            "tokenizer",
            "hook_dict",
            "to_tokens",
            "run_with_hooks",
            "named_parameters",
            "ln_final",
            "unembed",
        )
        for name in names:
            setattr(self, name, getattr(bridge, name))


class TestWhichEngine:
    def test_user_hooks_fire_under_hooks_and_make_auto_choose_hooks(self, tokenizer):
        model = load_model(hf_model=make_hf_model("llama", seed=2), tokenizer=tokenizer)
        target = TargetPrompt(model, TOKENS)
        vectors, _ = random_rows(model, 2)
        clean = patch_logits(target, vectors, [0, 0])
        model.add_hook("blocks.2.attn.hook_out", lambda value, hook: torch.zeros_like(value))
        with_hooks = patch_logits(target, vectors, [0, 0], engine="hooks")
        assert (with_hooks - clean).abs().max() > 1e-3
        torch.testing.assert_close(patch_logits(target, vectors, [0, 0]), with_hooks)
        torch.testing.assert_close(patch_logits(target, vectors, [0, 0], engine="fast"), clean)
        model.reset_hooks()
        torch.testing.assert_close(patch_logits(target, vectors, [0, 0]), clean)

    def test_user_hooks_fire_during_extraction(self, tokenizer):
        model = load_model(hf_model=make_hf_model("llama", seed=2), tokenizer=tokenizer)
        clean = extract_representation(model, TOKENS, 3, -1)
        model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: torch.zeros_like(value))
        assert (extract_representation(model, TOKENS, 3, -1) - clean).abs().max() > 1e-3

    def test_extraction_leaves_no_hooks_behind(self, llama):
        extract_representation(llama, TOKENS, 1, -1)
        assert not any(point.has_hooks() for point in llama.hook_dict.values())
        assert llama(TOKENS[None]).shape == (1, len(TOKENS), VOCABULARY)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom"])
    def test_prompts_that_are_read_in_parts_go_on_together(self, tiny_models, monkeypatch, family):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, 2)
        vectors, layers = torch.randn(9, model.cfg.d_model), [3, -1, 0, 2, 2, 1, -1, 3, 0]
        at_once = patch_generate(target, vectors, layers, max_new_tokens=5, engine="fast")
        monkeypatch.setattr(fast, "TOKENS_AT_A_TIME", 2 * target.suffix_length)
        in_parts = patch_generate(target, vectors, layers, max_new_tokens=5, engine="fast")
        assert torch.equal(in_parts, at_once)
        assert torch.equal(in_parts, patch_generate(target, vectors, layers, max_new_tokens=5, engine="hooks"))

    @given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=6), most=st.integers(1, 12))
    def test_parts_end_where_layers_end(self, counts, most):
        layers = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        sizes = fast.choose_part_sizes(layers, most)
        assert sum(sizes) == len(layers)
        assert 0 < min(sizes) <= max(sizes) <= most
        for part in layers.split(sizes):
            for layer in part.unique().tolist():
                assert (part == layer).sum() == counts[layer] or counts[layer] > most

    def test_auto_falls_back_with_a_warning_when_fast_cannot_run(self, tokenizer, monkeypatch):
        model = load_model(hf_model=make_hf_model("llama", seed=3), tokenizer=tokenizer)

        def refuse(*args, **kwargs):
            raise TypeError("unexpected argument")

        monkeypatch.setattr(fast, "staggered_forward", refuse)
        vectors, layers = random_rows(model, 4)
        with pytest.warns(UserWarning, match="cannot run it"):
            patch_logits(TargetPrompt(model, TOKENS), vectors, layers)

    def test_a_model_without_a_twin_runs_on_hooks(self, tiny_models):
        model = tiny_models("gpt2")
        hooked = HookedOnly(model)
        vectors, layers = random_rows(model, 4)
        expected = patch_logits(TargetPrompt(model, TOKENS), vectors, layers, engine="hooks")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits = patch_logits(TargetPrompt(hooked, TOKENS), vectors, layers)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(logit_lens(hooked, vectors), logit_lens(model, vectors), atol=1e-5, rtol=0)
        with pytest.raises(PatchscopesError, match="cannot run this HookedOnly.*engine='hooks'"):
            patch_logits(TargetPrompt(hooked, TOKENS), vectors, layers, engine="fast")

    def test_compatibility_mode_is_proved_again(self, tokenizer):
        model = load_model(hf_model=make_hf_model("gpt2", seed=4), tokenizer=tokenizer)
        vectors, layers = random_rows(model, 4)
        patch_logits(TargetPrompt(model, TOKENS), vectors, layers)
        model.enable_compatibility_mode()
        target = TargetPrompt(model, TOKENS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            auto = patch_logits(target, vectors, layers)
        torch.testing.assert_close(auto, patch_logits(target, vectors, layers, engine="hooks"), atol=1e-3, rtol=0)

    def test_accelerate_hooks_are_carried_over(self, tokenizer):
        from accelerate import dispatch_model

        hf_model = make_hf_model("llama", seed=6)
        dispatch_model(hf_model, device_map={"": "cpu"}, main_device="cpu", force_hooks=True)
        model = load_model(hf_model=hf_model, tokenizer=tokenizer)
        target = TargetPrompt(model, TOKENS, 5)
        vectors, layers = random_rows(model, 6)
        torch.testing.assert_close(
            patch_logits(target, vectors, layers, engine="fast"),
            patch_logits(target, vectors, layers, engine="hooks"),
            atol=1e-3,
            rtol=0,
        )
        said = [patch_generate(target, vectors, layers, max_new_tokens=4, engine=e) for e in ("fast", "hooks")]
        assert torch.equal(*said)


class TestNoRows:
    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_no_rows_in_none_out(self, llama, engine):
        target = TargetPrompt(llama, TOKENS)
        assert patch_logits(target, torch.zeros(0, 32), [], engine=engine).shape == (0, VOCABULARY)
        assert patch_generate(target, torch.zeros(0, 32), [], max_new_tokens=3, engine=engine).shape == (0, 3)


class TestExtraction:
    def test_a_text_given_many_times_is_read_once(self, llama, monkeypatch):
        batches = []
        run_with_hooks = llama.run_with_hooks

        def watched(tokens, **options):
            batches.append(tokens.shape)
            return run_with_hooks(tokens, **options)

        monkeypatch.setattr(llama, "run_with_hooks", watched)
        extract_representations(llama, [TOKENS] * 5, [0, 1, 2, 3, 4])
        assert batches == [(1, 5)]

    def test_all_blocks_unless_given(self, llama):
        states = extract_representations(llama, ["ab", "c"], [-1, -1])
        assert states.shape == (2, llama.cfg.n_layers, llama.cfg.d_model)

    def test_nothing_asked_for(self, llama):
        assert extract_representations(llama, [], []).shape == (0, llama.cfg.n_layers, llama.cfg.d_model)

    def test_long_batches_are_split(self, llama):
        texts = [[7] * length for length in (120, 3, 120, 50, 120, 120, 9, 120, 120, 120, 120, 120)]
        together = extract_representations(llama, texts, [-1] * len(texts))
        alone = [extract_representations(llama, [text], [-1]) for text in texts]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


class TestMistakes:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda model: TargetPrompt(model, "abc", 9), "position 9 does not exist in a text of 4 tokens"),
            (lambda model: TargetPrompt(model, []), "no tokens"),
            (lambda model: TargetPrompt(model, [5, 6], soft_prompt=torch.zeros(3, 32)), r"soft prompt is \(3, 32\)"),
            (lambda model: TargetPrompt(model, [3, VOCABULARY]), "token ids must be from 0 to 299"),
            (lambda model: TargetPrompt(model, [-1]), "token ids must be from 0 to 299"),
            (
                lambda model: patch_logits(TargetPrompt(model, "a"), torch.zeros(1, 32), [0], batch_size=-1),
                "batch_size",
            ),
            (lambda model: extract_representations(model, ["a"], [0], batch_size=0), "batch_size"),
            (lambda model: TargetPrompt(model, [5] * (CONTEXT + 1)), f"at most {CONTEXT}"),
            (lambda model: TargetPrompt(model, torch.ones(2, 3, dtype=torch.long)), "one text at a time"),
            (lambda model: extract_representation(model, "abc", 4, 0), "layers 0 to 3 and EMBEDDING"),
            (lambda model: extract_representations(model, ["abc"], [0, 1]), "1 texts and 2 positions"),
            (lambda model: patch_logits(TargetPrompt(model, "abc"), torch.zeros(2, 5), [0, 0]), "d_model = 32"),
            (lambda model: patch_logits(TargetPrompt(model, "abc"), torch.zeros(2, 32), [0]), "as many layers"),
            (lambda model: patch_logits(TargetPrompt(model, "abc"), torch.zeros(1, 32), [7]), "layer 7 does not exist"),
            (lambda model: run_with_patch(model, "abc", -1, torch.zeros(31)), "d_model = 32"),
            (
                lambda model: patch_generate(TargetPrompt(model, "abc"), torch.zeros(1, 32), [0], max_new_tokens=0),
                "at least 1",
            ),
            (
                lambda model: patch_generate(
                    TargetPrompt(model, "abc"), torch.zeros(1, 32), [0], max_new_tokens=CONTEXT - 2
                ),
                f"do not fit the model's context of {CONTEXT}",
            ),
        ],
    )
    def test_the_message_says_what_was_expected(self, llama, call, message):
        with pytest.raises(PatchscopesError, match=message):
            call(llama)
