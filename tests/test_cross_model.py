"""One model reads the states of another: alignment, f between models, and the experiment."""

import copy
import itertools

import numpy as np
import pytest
import torch
import transformers
from conftest import make_hf_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchscopes.alignment import (
    Vocabularies,
    align_positions,
    find_longest_beginning,
    map_vocabulary_by_text,
)
from patchscopes.data.entities import Entity
from patchscopes.data.texts import TextSet, load_texts
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import cross_model, entity
from patchscopes.experiments.config import CrossModelConfig, EntityConfig
from patchscopes.learned.fitting import fit_affine_maps, fit_cross_model_maps, fit_or_load_cross_model_maps
from patchscopes.learned.mappings import MapKey
from patchscopes.model.embedded import unpack_embedded_model
from patchscopes.model.layers import spread_layers
from patchscopes.model.loading import load_model
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.prompts import build_entity_description_prompt, build_token_identity_prompt
from patchscopes.results import ChunkStore
from patchscopes.tokens import decode_each_token, to_token_ids

MIXED = "Zoë naïvely paid 25 € in Москва, then 東京 and 서울 🙂👩‍🚀; ﷺ done.\nשלום  two  spaces"
TRAIN = TextSet("made up", "train", tuple(f"text {n}: {n * 7919 % 1000} dogs and {n**3 % 101} cats" for n in range(40)))
EVALUATION = TextSet(
    "made up", "evaluation", tuple(f"In {n} years {n * 31 % 57} birds sang, {MIXED}" for n in range(9))
)
ENTITIES = [
    Entity(name="Syria", reference="Country in the Middle East", kind="place", popularity="well_known"),
    Entity(name="東京", reference="capital of Japan", kind="place", popularity="well_known"),
]


@pytest.fixture(scope="module")
def pair(models_by_tokenizer):
    """Two tiny models that differ in everything."""
    return models_by_tokenizer["byte_level"], models_by_tokenizer["sentencepiece_like"]


def rotated(hf_model: transformers.LlamaForCausalLM, tokenizer) -> tuple:
    """The same function of its tokens with the residual stream in another, random, basis; and that rotation."""
    torch.manual_seed(7)
    rotation = torch.linalg.qr(torch.randn(hf_model.config.hidden_size, hf_model.config.hidden_size))[0]
    config = copy.deepcopy(hf_model.config)
    config.tie_word_embeddings = False
    weights = {name: weight.clone() for name, weight in hf_model.state_dict().items()}

    def read(norm: str, *names: str) -> None:
        for name in names:
            weights[name] = weights[name] * weights[norm] @ rotation
        weights[norm] = torch.ones_like(weights[norm])

    weights["model.embed_tokens.weight"] @= rotation
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}"
        read(f"{block}.input_layernorm.weight", *(f"{block}.self_attn.{part}_proj.weight" for part in "qkv"))
        read(
            f"{block}.post_attention_layernorm.weight", *(f"{block}.mlp.{part}_proj.weight" for part in ("gate", "up"))
        )
        for writing in ("self_attn.o_proj", "mlp.down_proj"):
            weights[f"{block}.{writing}.weight"] = rotation.T @ weights[f"{block}.{writing}.weight"]
    read("model.norm.weight", "lm_head.weight")
    other = transformers.LlamaForCausalLM(config).eval()
    other.load_state_dict(weights)
    return load_model(hf_model=other, tokenizer=tokenizer), rotation


class TestAlignment:
    @pytest.mark.parametrize("text", [MIXED, "plain words only", "  spaces  ", "東京", "🙂", "e\u0301"])
    def test_both_have_read_the_same_characters(self, pair, text):
        source, target = pair
        aligned = align_positions(source, target, text)
        assert aligned == sorted(set(aligned))
        for source_position, target_position in aligned:
            read = [
                prefixes(model, text)[position].lstrip()
                for model, position in ((source, source_position), (target, target_position))
            ]
            assert read[0] == read[1]
            assert text.lstrip().startswith(read[0])
        # Both end at the end of the text.
        last = (len(to_token_ids(source, text)) - 1, len(to_token_ids(target, text)) - 1)
        assert aligned[-1] == last

    def test_all_of_them_are_found(self, pair):
        source, target = pair
        texts = [[text.lstrip() for text in prefixes(model, MIXED)] for model in pair]
        common = {text for text in set(texts[0]) & set(texts[1]) if text and "\ufffd" not in text}
        found = {texts[0][position] for position, _ in align_positions(source, target, MIXED)}
        assert found == common

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
    def test_any_text(self, pair, text):
        source, target = pair
        ends = [source_position for source_position, _ in align_positions(source, target, text)]
        assert ends == sorted(set(ends))

    def test_with_itself_every_token_that_ends_a_character(self, smollm):
        text = "The quick brown fox, déjà vu"
        n_tokens = len(to_token_ids(smollm, text))
        aligned = align_positions(smollm, smollm, text)
        assert all(source == target for source, target in aligned)
        assert {source for source, _ in aligned} == set(range(1, n_tokens))

    def test_a_text_longer_than_a_context_is_cut(self, pair):
        source, target = pair
        text = "dogs and cats " * 200
        aligned = align_positions(source, target, text)
        assert max(position for position, _ in aligned) < source.cfg.n_ctx
        assert max(position for _, position in aligned) < target.cfg.n_ctx
        assert len(aligned) > 50


def prefixes(model, text: str) -> list[str]:
    """What the model has read of the text with each of its tokens."""
    ids = to_token_ids(model, text)
    return [model.tokenizer.decode(ids[: n + 1]).removeprefix("<s>") for n in range(len(ids))]


class TestVocabularies:
    def test_tokens_by_text(self, smollm, pair):
        for model in (smollm, *pair):
            vocabulary = map_vocabulary_by_text(model)
            sample = list(vocabulary.items())[::97]
            assert decode_each_token(model, [token for _, token in sample]) == [text for text, _ in sample]

    def test_bytes_do_not_stand_for_letters(self, pair):
        target = pair[1]
        for letter in ("e", ":"):
            assert target.tokenizer.convert_ids_to_tokens(map_vocabulary_by_text(target)[letter]) == letter

    def test_a_later_byte_does_not_replace_a_token(self, pair, monkeypatch):
        """As the newline of Gemma 3, whose byte comes after it in the vocabulary: here the two names change places."""
        tokenizer = pair[1].tokenizer
        first, second = sorted(tokenizer.convert_tokens_to_ids(["e", "<0x65>"]))
        monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"e": first, "<0x65>": second})
        assert map_vocabulary_by_text(pair[1]) == {"e": first}

    def test_longest_beginning(self):
        vocabulary = {" cap": 1, " capital": 2, "c": 3}
        assert find_longest_beginning(" capital", vocabulary) == 2
        assert find_longest_beginning(" capitals", vocabulary) == 2
        assert find_longest_beginning(" cape", vocabulary) == 1
        assert find_longest_beginning("東", vocabulary) is None

    def test_one_vocabulary_is_compared_as_it_is(self, llama):
        """Also its bytes, which have no text."""
        both = Vocabularies.of(llama, llama)
        tokens = torch.tensor([[0, 1, 200, 299]])
        assert torch.equal(both.same(llama, tokens), tokens)
        assert torch.equal(both.closest(tokens), tokens)

    def test_vocabularies_of_a_family_may_be_padded_to_different_sizes(self, llama, monkeypatch):
        both = Vocabularies.of(llama, llama)
        monkeypatch.setattr(llama.cfg, "d_vocab", 200)
        assert both.same(llama, torch.tensor([[0, 1, 200, 299]])).tolist() == [[0, 1, -1, -1]]


class TestFit:
    def test_of_a_model_to_itself_it_is_the_map_of_one_model(self, llama):
        """The same positions, the same sums."""
        ours = fit_cross_model_maps(llama, llama, TRAIN, [0, 2], [1, 3], n_positions=400)
        of_one = fit_affine_maps(llama, TRAIN, [0, 2], [1, 3], n_positions=400)
        assert ours.keys() == of_one.keys()
        for key, affine in ours.items():
            torch.testing.assert_close(affine.weight, of_one[key].weight, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(affine.bias, of_one[key].bias, atol=1e-4, rtol=1e-4)

    def test_finds_the_rotation(self, llama, tokenizer):
        other, rotation = rotated(make_hf_model("llama"), tokenizer)
        maps = fit_cross_model_maps(llama, other, TRAIN, [0, 1, 2, 3], [0, 1, 2, 3])
        for layer in range(4):
            torch.testing.assert_close(maps[MapKey(layer, layer)].weight, rotation.T, atol=1e-3, rtol=1e-3)

    def test_provenance(self, pair):
        source, target = pair
        made = fit_cross_model_maps(source, target, TRAIN, [1], [2], n_positions=200)[MapKey(1, 2)].provenance
        assert made.source_model["weights_sha256"] != made.target_model["weights_sha256"]
        assert made.n_positions == 200 <= made.options["source_positions_in_the_same_texts"]
        assert (made.options["source_layers"], made.options["target_layers"]) == ([1], [2])

    def test_mistakes(self, pair):
        with pytest.raises(PatchscopesError, match="train split"):
            fit_cross_model_maps(*pair, EVALUATION, [0], [0])
        with pytest.raises(PatchscopesError, match="layer 3 does not exist"):
            fit_cross_model_maps(*pair, TRAIN, [3], [3])
        with pytest.raises(PatchscopesError, match="n_positions must be at least 1"):
            fit_cross_model_maps(*pair, TRAIN, [0], [0], n_positions=0)

    def test_the_cache_is_reused(self, pair, tmp_path, monkeypatch):
        monkeypatch.setenv("PATCHSCOPES_CACHE", str(tmp_path))
        source, target = pair
        first = fit_or_load_cross_model_maps(source, target, TRAIN, [0, 1], [2], n_positions=200)

        def never(groups):
            raise AssertionError("fitted again")

        again = fit_or_load_cross_model_maps(source, target, TRAIN, [0, 1], [2], n_positions=200, progress=never)
        assert all(torch.equal(first[key].weight, again[key].weight) for key in first)
        for other in ((target, source), (source, source)):
            with pytest.raises(AssertionError, match="fitted again"):
                fit_or_load_cross_model_maps(*other, TRAIN, [0, 1], [2], n_positions=200, progress=never)


class TestRotatedModel:
    """A model that is known to be the same: through the fitted map it must say what the model itself says."""

    def test_same_logits_and_generations(self, llama, tokenizer):
        other, _ = rotated(make_hf_model("llama"), tokenizer)
        text = "cats chase dogs"
        layers = [0, 1, 2, 3]
        maps = fit_cross_model_maps(llama, other, TRAIN, layers, layers)
        states = extract_representations(llama, [text], [-1], layers)[0]
        mapped = torch.stack([maps[MapKey(layer, layer)](state) for layer, state in zip(layers, states, strict=True)])
        ours, theirs = (TargetPrompt(model, "x ? y", -3) for model in (llama, other))
        torch.testing.assert_close(
            patch_logits(theirs, mapped, layers), patch_logits(ours, states, layers), atol=2e-2, rtol=2e-2
        )
        assert torch.equal(patch_generate(theirs, mapped, layers), patch_generate(ours, states, layers))

    def test_on_the_embedded_model(self, smollm):
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(unpack_embedded_model())
        other, rotation = rotated(hf_model, smollm.tokenizer)
        layers = [2, 6, 12]
        maps = fit_cross_model_maps(smollm, other, load_texts(split="train"), layers, layers, n_positions=3000)
        names = ["Diana, Princess of Wales", "Alexander the Great", "New York City"]
        states = extract_representations(smollm, names, [-1] * len(names), layers)
        mapped = torch.stack([maps[MapKey(layer, layer)](states[:, slot]) for slot, layer in enumerate(layers)], dim=1)
        exact = states @ rotation
        assert float((mapped - exact).norm() / exact.norm()) < 0.01
        for prompt, placeholder in ((build_token_identity_prompt(), "?"), (build_entity_description_prompt(), "x")):
            ours, theirs = (placeholder_target(model, prompt, placeholder) for model in (smollm, other))
            same_model = patch_logits(ours, states.flatten(0, 1), layers * len(names))
            across = patch_logits(theirs, mapped.flatten(0, 1), layers * len(names))
            assert torch.equal(across.argmax(dim=-1), same_model.argmax(dim=-1))
            assert float((across - same_model).abs().max()) < 0.5


CONFIG = CrossModelConfig(
    n_samples=40, layers=(0, 2, 3), target_layers=(0, 2), entity=EntityConfig(max_new_tokens=4), seed=1
)


@pytest.fixture(scope="module")
def maps(pair):
    return fit_cross_model_maps(*pair, TRAIN, CONFIG.layers, CONFIG.target_layers)


def run(pair, folder, config=CONFIG, **options):
    return cross_model.run(*pair, EVALUATION, ENTITIES, config, ChunkStore(folder), **options)[0]


class TestExperiment:
    def test_is_the_plain_computation(self, pair, maps, tmp_path):
        """One sample after the other, one pair of layers after the other, with plain hooks."""
        source, target = pair
        results = run(pair, tmp_path, maps=maps)
        by_text = map_vocabulary_by_text(source)
        tables = {
            method: {"precision_at_1": np.zeros((3, 2)), "surprisal": np.zeros((3, 2))}
            for method in CrossModelConfig.METHODS
        }
        samples, aligned, _ = cross_model.draw_aligned(source, target, EVALUATION, CONFIG)
        for sample in samples:
            text = EVALUATION.texts[sample.text]
            position, target_position = aligned[sample.text][sample.position]
            ids = to_token_ids(source, text)[: position + 1]
            own = torch.log_softmax(source(ids[None])[0, -1], dim=-1)
            prompts = {
                "token_identity": placeholder_target(target, build_token_identity_prompt()),
                "source_prompt": TargetPrompt(target, to_token_ids(target, text)[: target_position + 1], -1),
            }
            states = extract_representations(source, [ids], [-1], CONFIG.layers)[0]
            for (row, layer), (column, target_layer) in itertools.product(
                enumerate(CONFIG.layers), enumerate(CONFIG.target_layers)
            ):
                vector = maps[MapKey(layer, target_layer)](states[row])[None]
                for method, prompt in prompts.items():
                    logits = patch_logits(prompt, vector, [target_layer], engine="hooks")
                    (said,) = decode_each_token(target, logits.argmax(dim=-1))
                    closest = find_longest_beginning(said, by_text)
                    of = tables[method]
                    of["precision_at_1"][row, column] += by_text.get(said) == int(own.argmax())
                    of["surprisal"][row, column] -= float(own.min() if closest is None else own[closest])
        for method, of in tables.items():
            for metric, table in of.items():
                measured = results["next_token"]["methods"][method][metric]["mean"]
                np.testing.assert_allclose(measured, table / 40, rtol=1e-4, err_msg=f"{method} {metric}")

    def test_a_model_that_reads_itself(self, llama, tmp_path):
        """With f = identity and M* = M it is the Patchscope of one model."""
        config = CrossModelConfig(n_samples=30, layers=(0, 1, 2, 3), target_layers=(0, 1, 2, 3), mapping="identity")
        results = run((llama, llama), tmp_path, config)
        methods = results["next_token"]["methods"]
        assert results["next_token"]["aligned_positions"] <= results["next_token"]["source_positions"]
        assert methods["target_model_alone"]["precision_at_1"]["mean"] > 0.9
        # T = S and ℓ* = ℓ patches a state over itself.
        own = np.diagonal(methods["source_prompt"]["surprisal"]["mean"])
        np.testing.assert_allclose(own, methods["target_model_alone"]["surprisal"]["mean"], atol=1e-5)
        # The same relative depth is the same layer: both describe alike.
        assert results["entity"]["pairs"] == [(layer, layer) for layer in range(4)]
        for described in results["entity"]["entities"]:
            texts = described["methods"]
            assert texts["cross_model"] == texts["same_model"]
            assert texts["name_in_clear_source_model"] == texts["name_in_clear_target_model"]

    def test_describes_as_the_entity_experiment_does(self, llama, tmp_path):
        config = CrossModelConfig(n_samples=5, layers=(0, 1, 2, 3), mapping="identity", entity=EntityConfig())
        ours = run((llama, llama), tmp_path / "cross", config)["entity"]["entities"]
        theirs = entity.run(llama, ENTITIES, EntityConfig(), ChunkStore(tmp_path / "one"))[0]["entities"]
        for one, other in zip(ours, theirs, strict=True):
            assert one["methods"]["cross_model"] == other["methods"]["patchscope"]
            assert one["methods"]["name_in_clear_target_model"] == other["methods"]["name_in_clear"]
            assert one["methods"]["unpatched_target_model"] == other["methods"]["unpatched"]

    def test_an_interrupted_run_goes_on(self, pair, maps, tmp_path):
        whole = run(pair, tmp_path / "whole", maps=maps)

        def stopping(chunks):
            for number, chunk in enumerate(chunks):
                if number == 2:
                    raise KeyboardInterrupt
                yield chunk

        with pytest.raises(KeyboardInterrupt):
            run(pair, tmp_path / "stopped", maps=maps, progress=stopping)
        assert len(list((tmp_path / "stopped").iterdir())) == 2
        assert run(pair, tmp_path / "stopped", maps=maps) == whole

    def test_one_method_and_no_entities(self, pair, maps, tmp_path):
        config = CrossModelConfig(n_samples=10, layers=(0,), target_layers=(2,), methods=("token_identity",))
        results, _ = cross_model.run(*pair, EVALUATION, [], config, ChunkStore(tmp_path), maps=maps)
        assert list(results["next_token"]["methods"]) == ["token_identity", "target_model_alone"]
        assert "entity" not in results

    def test_layers_at_equal_distances(self, smollm, llama):
        assert spread_layers(smollm, 10) == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
        assert spread_layers(llama, 10) == [0, 1, 2, 3]
        assert spread_layers(llama, 1) == [0]

    def test_mistakes(self, pair, maps, llama, tmp_path):
        def config(**options):
            return CrossModelConfig(**{"layers": (0, 2), "target_layers": (0,), "n_samples": 3} | options)

        with pytest.raises(PatchscopesError, match="one width.*use the affine mapping"):
            run(pair, tmp_path, config(mapping="identity"))
        with pytest.raises(PatchscopesError, match="mapping must be affine or identity"):
            run(pair, tmp_path, config(mapping="linear"), maps=maps)
        with pytest.raises(PatchscopesError, match="f is missing for the layers 1→0"):
            run(pair, tmp_path, config(layers=(0, 1)), maps=maps)
        with pytest.raises(PatchscopesError, match="f is missing"):
            run(pair, tmp_path, config())
        with pytest.raises(PatchscopesError, match="learned from"):
            run((llama, pair[1]), tmp_path, config(), maps=maps)
        with pytest.raises(PatchscopesError, match="no method is called 'guess'"):
            run(pair, tmp_path, config(methods=("guess",)), maps=maps)
        with pytest.raises(PatchscopesError, match="layer 9 does not exist"):
            run(pair, tmp_path, config(target_layers=(9,)), maps=maps)


def test_predictions_of_different_vocabularies_are_compared_by_text(pair):
    source, target = pair
    vocabulary = map_vocabulary_by_text(source)
    predicted = torch.tensor([[map_vocabulary_by_text(target)[" the"], target.tokenizer.eos_token_id]])
    logits = torch.zeros(1, 1024)
    logits[0, vocabulary[" the"]] = 5.0
    two = cross_model.ModelPair(source, target, [0], [0, 1], None)
    compared = cross_model._compare_predictions(two, predicted, logits, Vocabularies.of(source, target))
    assert compared["precision_at_1"] == [[[1, 0]]]
    own = torch.log_softmax(logits, dim=-1)[0, vocabulary[" the"]]
    assert compared["surprisal"][0][0][0] == pytest.approx(-float(own))
    assert compared["surprisal"][0][0][1] > 5
