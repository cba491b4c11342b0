"""LREs: exact where the model is linear, the same in both forms, kept with where they come from."""

import hashlib

import pytest
import torch
from conftest import KINDS, make_hf_model
from linear_model import ATTENDING, make_linear_model

from patchscopes.baselines import AffineLens, source_patchscope
from patchscopes.data.relations import Relation, RelationSample
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.jacobian import compute_jacobians
from patchscopes.errors import PatchscopesError
from patchscopes.learned import cached_fits
from patchscopes.learned.cached_fits import fit_or_load_lre
from patchscopes.learned.fitting import fit_affine_maps
from patchscopes.learned.low_rank import invert_low_rank
from patchscopes.learned.lre import (
    LRE,
    build_lre_prompt,
    build_training_prompts,
    choose_betas,
    find_subject_position,
    fit_lre,
)
from patchscopes.learned.mappings import save_maps
from patchscopes.model.loading import load_model
from patchscopes.positions import find_first_tokens
from patchscopes.tokens import decode_each_token, to_token_ids

SAMPLES = tuple(
    RelationSample(subject=subject, object=of_subject)
    for subject, of_subject in (("Japan", "yen"), ("India", "rupee"), ("Peru", "sol"))
)
CURRENCY = Relation(name="currency", prompt="Money of {}", samples=SAMPLES)
PLACED = Relation(name="currency", prompt="{} pays in", samples=SAMPLES)


@pytest.fixture(scope="module")
def linear(models_by_tokenizer):
    return make_linear_model(models_by_tokenizer["byte_level"].tokenizer)


class TestPrompt:
    def test_solved_examples_and_then_the_subject(self):
        assert build_lre_prompt(CURRENCY, SAMPLES[:2], "Peru") == (
            "Money of Japan is yen\nMoney of India is rupee\nMoney of Peru is"
        )
        assert build_lre_prompt(PLACED, SAMPLES[:1], "Peru") == "Japan pays in yen\nPeru pays in"
        assert build_lre_prompt(CURRENCY, [], "Peru") == "Money of Peru is"

    def test_training_prompts_leave_out_their_own(self):
        texts = build_training_prompts(CURRENCY, SAMPLES)
        assert [text.count("\n") for text in texts.texts] == [2, 2, 2]
        for text, sample in zip(texts.texts, SAMPLES, strict=True):
            assert sample.object not in text
            assert text.endswith(f"{sample.subject} is")

    @pytest.mark.parametrize("cut", ["byte_level", "sentencepiece_like"])
    @pytest.mark.parametrize("relation", [CURRENCY, PLACED])
    def test_finds_the_subject(self, models_by_tokenizer, cut, relation):
        """Also where its name stands after it too, or in another line."""
        model = models_by_tokenizer[cut]
        for subject in ("Peru", "India", "i", "pays"):
            prompt = build_lre_prompt(relation, SAMPLES[:2], subject)
            position = find_subject_position(model, relation, prompt)
            texts = decode_each_token(model, to_token_ids(model, prompt))
            tail = relation.prompt.rpartition("{}")[2] + relation.cue
            # Some tokens end in a space.
            assert "".join(texts[position + 1 :]).strip() == tail.strip()
        with pytest.raises(PatchscopesError, match="found no subject before"):
            find_subject_position(model, relation, "Something else")


def test_first_tokens(models_by_tokenizer):
    """Those that the answer's own tokens begin with where it goes on from a word, in both spellings."""
    for model in models_by_tokenizer.values():
        upper, both = (find_first_tokens(model, [answer]) for answer in ("And so on", "and so on"))
        said = decode_each_token(model, both)
        assert all(" and so on".startswith(token) or " And so on".startswith(token) for token in said)
        assert len(upper) == 1 < len(both) == 2
        assert upper[0] in both
        assert torch.equal(find_first_tokens(model, ["And so on", "and so on"]), both)
    with pytest.raises(PatchscopesError, match="no answer"):
        find_first_tokens(model, [])


class TestLinear:
    def test_is_the_exact_map(self, linear):
        model, relation, weight = linear
        lre = fit_lre(model, relation, relation.samples[:4], [-1, 0, 1, 2, 3], betas=[1.0])
        for layer, found in zip(lre.layers, lre.weights, strict=True):
            expected = weight if layer < ATTENDING else torch.zeros(32, 32)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_gives_the_output_of_unseen_subjects(self, linear):
        model, relation, _ = linear
        lre = fit_lre(model, relation, relation.samples[:4], [0, 1], betas=[1.0])
        for sample in relation.samples[4:]:
            prompt = build_lre_prompt(relation, relation.samples[:4], sample.subject)
            position = find_subject_position(model, relation, prompt)
            states = extract_representations(model, [prompt, prompt], [position, -1], [0, 1, 3])
            given = lre.mapping(model)(states[0, :2], torch.tensor([0, 1]))
            torch.testing.assert_close(given, states[1, 2].expand(2, -1), atol=1e-4, rtol=1e-4)
            read = AffineLens(model, lre.mapping(model))(states[0, :2], torch.tensor([0, 1])).argmax(dim=-1)
            assert torch.isin(read, find_first_tokens(model, [sample.object])).all()


class TestFit:
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_is_the_mean_of_expansions(self, tiny_models, family):
        """Of each sample's, from plain hooks; and engines agree."""
        model = tiny_models(family)
        lre = fit_lre(model, CURRENCY, SAMPLES, [2, 0])
        expansions = []
        for prompt in build_training_prompts(CURRENCY, SAMPLES).texts:
            position = find_subject_position(model, CURRENCY, prompt)
            computed = compute_jacobians(model, prompt, position, [2, 0], engine="hooks")
            products = (computed.jacobians @ computed.representations[..., None])[..., 0]
            expansions.append((computed.jacobians, computed.output - products))
        for ours, parts in ((lre.weights, 0), (lre.biases, 1)):
            expected = torch.stack([one[parts] for one in expansions]).mean(dim=0)
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
        by_hooks = fit_lre(model, CURRENCY, SAMPLES, [2, 0], engine="hooks")
        torch.testing.assert_close(by_hooks.weights, lre.weights, atol=1e-4, rtol=1e-3)

    def test_beta_undoes_a_map_that_is_too_small(self, linear):
        """Leave-one-out, done here by hand: without its own sample, and with W made smaller."""
        model, relation, weight = linear
        train = relation.samples[:5]
        texts = build_training_prompts(relation, train)
        positions = [find_subject_position(model, relation, text) for text in texts.texts]
        subjects = extract_representations(model, texts.texts, positions, [0])
        outputs = extract_representations(model, texts.texts, [-1] * 5, [3])[:, 0]
        applied = (subjects @ weight.T / 4).expand(5, -1, -1, -1)
        # o - W s holds three quarters of the other subjects: only a β of about 4 finds the fifth.
        chosen = choose_betas(model, train, applied, outputs, [0.5, 4.0, 1.0])
        assert chosen.tolist() == [4.0]
        # Without any difference between samples no β is better, and the smallest is taken.
        same = torch.zeros(5, 5, 1, 32)
        assert choose_betas(model, train, same, outputs, [2.0, 0.5, 1.0]).tolist() == [0.5]

    def test_mistakes(self, llama):
        with pytest.raises(PatchscopesError, match="got 1, give at least 2"):
            fit_lre(llama, CURRENCY, SAMPLES[:1])
        with pytest.raises(PatchscopesError, match="no β to choose from"):
            fit_lre(llama, CURRENCY, SAMPLES, betas=())
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            fit_lre(llama, CURRENCY, SAMPLES, [9])
        with pytest.raises(PatchscopesError, match="shorten it"):
            fit_lre(llama, CURRENCY, SAMPLES * 10)

    def test_bfloat16(self, tokenizer):
        model = load_model(hf_model=make_hf_model("llama"), tokenizer=tokenizer, dtype="bfloat16")
        lre = fit_lre(model, CURRENCY, SAMPLES, [1])
        assert lre.weights.dtype == lre.biases.dtype == torch.float32
        rows = extract_representations(model, ["abc"], [-1], [1])[0]
        assert AffineLens(model, lre.mapping(model))(rows, torch.tensor([1])).dtype == torch.bfloat16

    def test_progress_wraps_the_samples(self, llama):
        seen = []
        fit_lre(llama, CURRENCY, SAMPLES, [1], progress=lambda samples: (seen.append(len(samples)), samples)[1])
        assert seen == [3]


@pytest.mark.parametrize("family", KINDS)
def test_attribute_lens_is_its_patchscope(tiny_models, family):
    model = tiny_models(family)
    mapping = fit_lre(model, CURRENCY, SAMPLES, [0, 2, 3]).mapping(model)
    source, layers = "pay for it in Japan", torch.tensor([0, 2, 3])
    rows = extract_representations(model, [source], [-3], [0, 2, 3])[0]
    twin = source_patchscope(model, source, -3, mapping)
    torch.testing.assert_close(AffineLens(model, mapping)(rows, layers), twin(rows, layers), atol=1e-4, rtol=1e-4)


class TestFiles:
    def test_file_and_provenance(self, llama, tmp_path):
        lre = fit_lre(llama, CURRENCY, SAMPLES, [2, 0])
        lre.save(tmp_path / "lre.safetensors")
        loaded = LRE.load(tmp_path / "lre.safetensors")
        assert (loaded.layers, loaded.provenance) == ((2, 0), lre.provenance)
        for name in ("weights", "biases", "betas"):
            assert torch.equal(getattr(loaded, name), getattr(lre, name))
        made = loaded.provenance
        prompts = build_training_prompts(CURRENCY, SAMPLES).texts
        assert (made.estimator, made.n_positions) == ("lre", 3)
        assert made.dataset == {"name": "currency", "sha256": hashlib.sha256("\0".join(prompts).encode()).hexdigest()}
        assert made.options["train"] == [["Japan", "yen"], ["India", "rupee"], ["Peru", "sol"]]
        assert made.options["layers"] == [2, 0]

    def test_other_files_are_refused(self, llama, tmp_path):
        path = tmp_path / "maps.safetensors"
        save_maps(path, fit_affine_maps(llama, build_training_prompts(CURRENCY, SAMPLES), [0]))
        with pytest.raises(PatchscopesError, match="holds no LRE but something learned by 'least_squares'"):
            LRE.load(path)
        with pytest.raises(PatchscopesError, match="there is no file"):
            LRE.load(tmp_path / "nothing")

    def test_other_models_are_refused(self, llama, tokenizer):
        lre = fit_lre(llama, CURRENCY, SAMPLES, [1])
        other = load_model(hf_model=make_hf_model("llama", seed=1), tokenizer=tokenizer)
        with pytest.raises(PatchscopesError, match="learned from 'LlamaForCausalLM', and the weights"):
            lre.mapping(other)

    def test_cache(self, llama, tmp_path, monkeypatch):
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
        first = fit_or_load_lre(llama, CURRENCY, SAMPLES, [1])
        fitted = []
        monkeypatch.setattr(cached_fits, "fit_lre", lambda *args, **options: (fitted.append(args), first)[1])
        assert torch.equal(fit_or_load_lre(llama, CURRENCY, SAMPLES, [1]).weights, first.weights)
        assert not fitted
        other_object = RelationSample(subject="Japan", object="yen", aliases=("JPY",))
        for changed in (
            {"relation": PLACED},
            {"train": SAMPLES[:2]},
            {"train": (other_object, *SAMPLES[1:])},
            {"layers": [0]},
            {"betas": [1.0]},
            {"fresh": True},
        ):
            fit_or_load_lre(llama, **({"relation": CURRENCY, "train": SAMPLES, "layers": [1]} | changed))
        assert len(fitted) == 6


class TestLowRankInverse:
    def test_is_the_pseudo_inverse_of_the_truncated_map(self):
        torch.manual_seed(0)
        weights, change = torch.randn(3, 6, 6), torch.randn(6)
        # One map has fewer dimensions than ranks are asked for, one has none.
        weights[1, :, 3:] = 0
        weights[2] = 0
        found = invert_low_rank(weights)(change, [1, 3, 6])
        for layer, weight in enumerate(weights):
            u, s, vh = torch.linalg.svd(weight)
            for slot, rank in enumerate((1, 3, 6)):
                truncated = u[:, :rank] * s[:rank] @ vh[:rank]
                torch.testing.assert_close(
                    found[layer, slot], torch.linalg.pinv(truncated, rtol=1e-5) @ change, atol=1e-4, rtol=1e-4
                )

    def test_at_full_rank_it_is_the_inverse(self):
        torch.manual_seed(0)
        weights, change = torch.randn(2, 5, 5), torch.randn(5)
        moved = weights @ invert_low_rank(weights)(change, [5])[..., 0, :, None]
        torch.testing.assert_close(moved[..., 0], change.expand(2, -1), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("rank", [0, 6])
    def test_ranks_that_are_none(self, rank):
        with pytest.raises(PatchscopesError, match=f"a rank must be from 1 to 5, the width of the map; got {rank}"):
            invert_low_rank(torch.eye(5)[None])(torch.ones(5), [2, rank])


def test_on_the_embedded_model(smollm):
    """Capitals that it was not fitted on, from a middle layer; both forms agree."""
    known = {"France": "Paris", "Italy": "Rome", "Egypt": "Cairo", "Spain": "Madrid", "Russia": "Moscow"}
    known |= {"Japan": "Tokyo", "Austria": "Vienna", "Greece": "Athens", "Cuba": "Havana"}
    samples = tuple(RelationSample(subject=country, object=capital) for country, capital in known.items())
    capital = Relation(name="capital", prompt="The capital city of {}", samples=samples)
    train, tested = samples[:3], samples[3:]
    lre = fit_lre(smollm, capital, train, [20])
    mapping, layers = lre.mapping(smollm), torch.tensor([20])
    n_right = 0
    for sample in tested:
        prompt = build_lre_prompt(capital, train, sample.subject)
        position = find_subject_position(smollm, capital, prompt)
        rows = extract_representations(smollm, [prompt], [position], [20])[0]
        logits = AffineLens(smollm, mapping)(rows, layers)
        n_right += int(torch.isin(logits.argmax(), find_first_tokens(smollm, sample.accepted)))
    assert n_right >= len(tested) // 2
    twin = source_patchscope(smollm, prompt, position, mapping)(rows, layers)
    torch.testing.assert_close(twin, logits, atol=1e-4, rtol=1e-4)
