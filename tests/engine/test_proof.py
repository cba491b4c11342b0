"""The proof of the fast engine: it passes on what is right, in any type and on any CPU, and finds what is broken."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import CONTEXT, FAMILIES, ROOT, make_hf_model
from transformers import BitsAndBytesConfig

from patchscopes.engine import checking, clean_run, decoding, fast, prefix, proof, reference
from patchscopes.engine.building import get_twin, use_family_attention
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.proof import find_fast_engine_failure
from patchscopes.engine.reference import build_trials, record_reference
from patchscopes.engine.target import TargetPrompt
from patchscopes.model.embedded import unpack_embedded_model
from patchscopes.model.layers import EMBEDDING
from patchscopes.model.loading import load_model
from patchscopes.patch import patch_generate, patch_logits

TOKENS = torch.arange(20, 32)
DTYPES = ("float32", "bfloat16", "float16")
# Those whose attention gets arguments or caches widths that attention over a shared prefix does not know, or that do
# not take their attention from Hugging Face's registry.
FAMILY_ATTENTION = {"gptj", "bloom", "gpt_oss", "deepseek_v3", "mpt", "falcon", "gpt_neo", "stablelm"}


def compare(references, broken=()):
    """What the proof finds when some parts are broken: (module or class, name, what makes a replacement of it)."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name, breaking in broken:
            patch.setattr(place, name, breaking(getattr(place, name)))
        return proof.compare(references)


def change_result(change):
    """A part whose result is changed."""
    return lambda part: lambda *args, **kwargs: change(part(*args, **kwargs))


def reverse_rows(cache):
    for layer in cache.prefix_layers:
        layer.keep_rows(torch.arange(len(layer.row_keys_values[0])).flip(0))
    return cache


def use_calls_of_the_prompt(begin_step):
    """The arguments that the blocks were called with while the suffix was read, for generated tokens too."""
    recorded = []

    def stale(twin, tokens, cache):
        entering, calls = begin_step(twin, tokens, cache)
        recorded.append(calls)
        return entering, recorded[0]

    return stale


def shift_layers(staggered_forward):
    """Every row is patched one layer too late, or one too early at the end."""

    def shifted(twin, clean, vectors, layers):
        return staggered_forward(
            twin, clean, vectors, torch.where(layers == len(twin.blocks) - 1, layers - 1, layers + 1)
        )

    return shifted


def leave_early(count_continuations_in_blocks):
    """A continuation leaves the batch one block before the last of its rows has joined."""

    def leaving(generation, n_blocks):
        counts = count_continuations_in_blocks(generation, n_blocks)
        return [*counts[1:], counts[-1]]

    return leaving


BROKEN = {
    "rows are not patched": [
        (fast, "write_vectors", lambda _: lambda residual, vectors: residual.expand(len(vectors), -1, -1).clone())
    ],
    "rows come back in the wrong order": [(fast, "restore_order", lambda _: lambda rows, order: rows)],
    "caches are in the wrong order": [(fast, "join_caches", change_result(reverse_rows))],
    "another row is dropped than the one to drop": [
        (
            fast,
            "decode_step",
            lambda step: (
                lambda twin, cache, before, kept, tokens: step(twin, cache, before, torch.arange(len(kept)), tokens)
            ),
        )
    ],
    "every continuation goes on from the first one": [
        (decoding, "append_tokens", change_result(lambda made: (made[0], torch.zeros_like(made[1]), made[2])))
    ],
}
# What else can be thought of.
BROKEN_FURTHER = {
    "every row is patched at another layer": [(fast, "staggered_forward", shift_layers)],
    "rows are patched at the last token": [
        (fast, "write_vectors", lambda write: lambda residual, vectors: write(residual.flip(1), vectors).flip(1))
    ],
    "the first token of the suffix is read": [
        (
            fast,
            "staggered_forward",
            change_result(lambda made: (made[0].roll(1, dims=0), *made[1:])),
        )
    ],
    "new tokens are those of other rows": [
        (decoding, "begin_step", change_result(lambda made: (made[0].roll(1, dims=0), made[1])))
    ],
    "generated tokens have the positions of the first one": [(decoding, "begin_step", use_calls_of_the_prompt)],
    "continuations leave too early": [(decoding.Generation, "count_continuations_in_blocks", leave_early)],
    "the first key of the prefix is lost": [
        (
            clean_run,
            "run_base_model",
            change_result(lambda made: [(keys.clone().index_fill_(2, torch.tensor([0]), 0.0), v) for keys, v in made]),
        )
    ],
    "continuations with the same last token are one": [
        (
            decoding,
            "append_tokens",
            lambda append: (
                lambda before, kept, tokens: append(
                    replace(before, continuations=torch.zeros_like(before.continuations)), kept, tokens
                )
            ),
        )
    ],
    "the final norm is left out": [(fast, "unembed", lambda unembed: lambda twin, rows: unembed(twin, rows.abs()))],
    "logits are scaled": [(fast, "unembed", change_result(lambda logits: logits * 1.3))],
}
# These change nothing for families whose attention is their own.
BROKEN_SHARED = {
    "attention does not see the prefix": [
        (prefix, "get_cache_in_use", change_result(lambda cache: prefix.PrefixCache([None] * 4, shared=True)))
    ],
    "attention is too sharp": [(prefix, "softmax_over_keys", lambda softmax: lambda scores: softmax(scores * 4))],
}


def find_missed(references, parts):
    """The broken parts that the proof does not find."""
    return [name for name, broken in parts.items() if compare(references, broken) is None]


@pytest.fixture(autouse=True)
def few_roundings(monkeypatch):
    """What is broken is broken in any rounding: two are enough to see that it is not that."""
    monkeypatch.setattr(reference, "N_ROUNDINGS", 2)


@pytest.fixture(scope="module")
def references(tokenizer):
    """What plain hooks compute, by family and type; each made on first use."""
    made = {}

    def get(family, dtype, position=5):
        if (family, dtype, position) not in made:
            made.clear()
            model = load_model(hf_model=make_hf_model(family, seed=5), tokenizer=tokenizer, dtype=dtype)
            made[family, dtype, position] = [record_reference(TargetPrompt(model, TOKENS, position))]
        return made[family, dtype, position]

    return get


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_is_right_passes_and_what_is_broken_is_found(self, references, family, dtype):
        of_family = references(family, dtype)
        assert get_twin(of_family[0].target.model).shares_prefix == (family not in FAMILY_ATTENTION)
        assert compare(of_family) is None
        assert find_missed(of_family, BROKEN) == []

    def test_blocks_called_alike_are_found_where_they_are_not_alike(self, references, family):
        of_family = references(family, "float32")
        record = fast.TargetPrompt.clean_run.fget

        def with_the_first_call(target):
            clean = record(target)
            return replace(clean, calls=[clean.calls[0]] * len(clean.calls))

        broken = [(fast.TargetPrompt, "clean_run", lambda _: property(with_the_first_call))]
        # Windows and chunks that only some layers have.
        mixed = {"gemma2", "gemma3", "gpt_oss", "llama4"}
        found = compare(of_family, broken)
        assert (found is not None) == (family in mixed), found


@pytest.mark.parametrize("dtype", DTYPES)
# Of each kind of block and attention one.
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "bloom", "gpt_oss"])
def test_more_that_is_broken_is_found(references, family, dtype):
    shared = BROKEN_SHARED if family not in FAMILY_ATTENTION else {}
    assert find_missed(references(family, dtype), BROKEN_FURTHER | shared) == []


@pytest.mark.parametrize("prompt", [TOKENS[:2], TOKENS[:1], TOKENS.repeat(20)])
def test_short_and_long_prompts_are_proved_on_enough_tokens(tokenizer, prompt):
    model = load_model(hf_model=make_hf_model("llama", seed=3), tokenizer=tokenizer)
    trials = build_trials(TargetPrompt(model, prompt))
    assert all(12 <= len(trial.tokens) <= 64 for trial in trials)
    last, inner = trials
    assert last.suffix_length == 1
    assert 1 < inner.position < len(inner.tokens) - 2
    assert inner.soft_prompt is not None
    assert find_missed([record_reference(trial) for trial in trials], BROKEN | BROKEN_FURTHER) == []


def test_a_prompt_that_fills_the_context_is_proved_too(tokenizer):
    model = load_model(hf_model=make_hf_model("gpt2", seed=3), tokenizer=tokenizer)
    assert find_fast_engine_failure(TargetPrompt(model, [7] * CONTEXT)) is None


def test_a_soft_prompt_is_proved_and_missed(tokenizer):
    model = load_model(hf_model=make_hf_model("llama", seed=3), tokenizer=tokenizer)
    soft_prompt = extract_representations(model, [TOKENS] * 12, list(range(12)), [EMBEDDING])[:, 0].flip(0)
    references = [record_reference(TargetPrompt(model, TOKENS, 5, soft_prompt=soft_prompt))]
    assert compare(references) is None
    ignoring = [(clean_run, "enter_soft_prompt", lambda enter: lambda forwards, soft: enter(forwards, None))]
    assert "nothing that enters it" in compare(references, ignoring)


def test_a_failure_warns_once_and_hooks_answer(tokenizer, monkeypatch):
    model = load_model(hf_model=make_hf_model("llama", seed=3), tokenizer=tokenizer)
    target = TargetPrompt(model, TOKENS)
    vectors = torch.randn(3, model.cfg.d_model)
    right = patch_logits(target, vectors, [0, 1, 2], engine="hooks")
    unembed = fast.unembed
    monkeypatch.setattr(fast, "unembed", lambda twin, residual: unembed(twin, residual) * 1.01)
    with pytest.warns(UserWarning, match="slow hooks engine.*differs from plain hooks"):
        torch.testing.assert_close(patch_logits(target, vectors, [0, 1, 2]), right)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch_logits(target, vectors, [0, 1, 2])


class TestAttentionOfItsOwn:
    def test_a_family_that_fails_with_a_shared_prefix_is_tried_with_its_own_attention(self, tokenizer, monkeypatch):
        model = load_model(hf_model=make_hf_model("llama", seed=3), tokenizer=tokenizer)
        target = TargetPrompt(model, TOKENS, 5)
        softmax = prefix.softmax_over_keys
        monkeypatch.setattr(prefix, "softmax_over_keys", lambda scores: softmax(scores) * 0.5)
        before = target.clean_run
        assert find_fast_engine_failure(target) is None
        assert not get_twin(model).shares_prefix
        assert target.clean_run is not before
        vectors = torch.randn(3, model.cfg.d_model)
        answers = [patch_generate(target, vectors, [0, 1, 2], max_new_tokens=4, engine=e) for e in ("fast", "hooks")]
        assert torch.equal(*answers)

    @pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
    def test_it_computes_the_same(self, tokenizer, family):
        model = load_model(hf_model=make_hf_model(family, seed=3), tokenizer=tokenizer)
        target = TargetPrompt(model, TOKENS, 5)
        vectors, layers = torch.randn(4, model.cfg.d_model), [0, 3, -1, 1]
        shared = patch_logits(target, vectors, layers, engine="fast")
        use_family_attention(model)
        torch.testing.assert_close(patch_logits(target, vectors, layers, engine="fast"), shared, atol=1e-4, rtol=0)

    def test_attention_with_something_unknown_is_refused(self):
        nothing = torch.zeros(1, 1, 1, 4)
        with pytest.raises(TypeError, match="s_aux"):
            prefix.shared_prefix_attention(None, nothing, nothing, nothing, None, s_aux=torch.zeros(1))


def test_a_state_space_model_runs_on_hooks_with_one_sentence(tokenizer):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=3, vocab_size=300, state_size=4)
    model = load_model(hf_model=MambaForCausalLM(config).eval(), tokenizer=tokenizer)
    target = TargetPrompt(model, TOKENS)
    vectors = torch.randn(2, model.cfg.d_model)
    with pytest.warns(UserWarning, match="keeps no keys and values of its tokens") as warned:
        logits = patch_logits(target, vectors, [0, 1])
    assert len(warned) == 1
    torch.testing.assert_close(logits, patch_logits(target, vectors, [0, 1], engine="hooks"))


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.float32), (4, torch.bfloat16)])
def test_quantised_weights_are_proved(bits, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = unpack_embedded_model()
    quantised = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=dtype)
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantised, dtype=dtype, device_map={"": "cpu"}
    )
    model = load_model(hf_model=hf_model, tokenizer=AutoTokenizer.from_pretrained(folder))
    references = [record_reference(TargetPrompt(model, "cat -> cat\n?"))]
    assert compare(references) is None
    assert find_missed(references, BROKEN) == []


def check_in_16_bit():
    """In a process of its own, without the checks of shapes: what is right passes, and what is broken is found."""
    model = load_model(dtype="bfloat16")
    trials = build_trials(TargetPrompt(model, "?"))
    for family, dtype in (("llama", "bfloat16"), ("llama", "float16"), ("mixtral", "bfloat16")):
        tiny = load_model(hf_model=make_hf_model(family, seed=5), tokenizer=model.tokenizer, dtype=dtype)
        trials.append(TargetPrompt(tiny, TOKENS, 5))
    last, *others = [record_reference(trial) for trial in trials]
    assert compare([last, *others]) is None
    assert [find_missed([one], BROKEN) for one in others] == [[]] * len(others)


# A value only lowers what a CPU has: they run anywhere.
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "AVX512_CORE_BF16", None])
def test_16_bit_is_proved_however_the_cpu_rounds(isa):
    code = f"""
import sys
import torch
import patchscopes.engine.proof, patchscopes.engine.reference, patchscopes.model.loading, patchscopes.patch
sys.path[:0] = {[str(ROOT / "tests"), str(ROOT / "tests" / "engine")]}
import test_proof
from patchscopes.engine import reference
reference.N_ROUNDINGS = 2
with torch.no_grad():
    test_proof.check_in_16_bit()
"""
    lowered = {} if isa is None else {"ONEDNN_MAX_CPU_ISA": isa}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | lowered, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


class TestTolerance:
    def test_it_follows_the_type(self, llama):
        twin = get_twin(llama)
        tolerances = [checking.get_tolerance(twin, getattr(torch, dtype)) for dtype in DTYPES]
        assert tolerances[0] < tolerances[2] < tolerances[1] < 0.2

    def test_what_rounding_alone_can_change_is_allowed(self, references, monkeypatch):
        (of_mixtral,) = references("mixtral", "float32")
        # As if the choice of an expert had fallen otherwise, where another digit would have made it fall so too.
        measure = checking.measure_error
        monkeypatch.setattr(checking, "measure_error", lambda *args: measure(*args) + 0.3)
        assert "adds differs" in compare([of_mixtral])
        vars(of_mixtral)["sensitivity"] = torch.full_like(of_mixtral.sensitivity, 0.2)
        assert compare([of_mixtral]) is None
        del vars(of_mixtral)["sensitivity"]
