"""Experiments with S and T in a chat template: the same tokens are read and written there, and nothing else changes."""

import copy
import re

import numpy as np
import pytest
import torch
from conftest import make_hf_model
from made_up_facts import make_facts
from made_up_names import TEMPLATES as NAME_TEMPLATES

from patchscopes.data.entities import Entity
from patchscopes.data.questions import TwoHopQuestion
from patchscopes.data.relations import RelationSample
from patchscopes.data.target_prompts import Candidate, PromptBand
from patchscopes.data.texts import TextSet
from patchscopes.engine.extract import extract_representation, extract_representations
from patchscopes.engine.target import placeholder_target
from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError
from patchscopes.experiments import (
    attention_knockout,
    causal_tracing,
    cross_model,
    entity,
    entity_layers,
    future_lens,
    layer_readout,
    lenses,
    next_token,
    prompt_table,
    target_prompts,
)
from patchscopes.experiments.attribute_samples import cut_source_prompt, take_source_prompt
from patchscopes.experiments.config import (
    AttentionKnockoutConfig,
    CausalTracingConfig,
    CrossModelConfig,
    EntityConfig,
    LayerReadoutConfig,
    LensesConfig,
    MultiHopConfig,
    NextTokenConfig,
    PromptTableConfig,
    TargetPromptsConfig,
)
from patchscopes.experiments.facts import find_known, tokenize_fact
from patchscopes.experiments.layer_grid_choices import build_source
from patchscopes.experiments.layer_grid_patching import build_target, build_text
from patchscopes.experiments.multi_hop import ask_unpatched
from patchscopes.experiments.multi_hop_patching import build_patching, find_patch_positions
from patchscopes.experiments.sampling import sample_aligned_positions, sample_positions
from patchscopes.model.loading import load_model
from patchscopes.prompts import NO_CHAT, Chat, ChatForm, as_chat, build_token_identity_prompt
from patchscopes.results import ChunkStore
from patchscopes.tokens import decode_each_token, to_token_ids

TEMPLATE = (
    "{% for one in messages %}<s>{{ one.role }}\n{{ one.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant x?\n{% endif %}"
)
BEFORE, BEHIND = "<s>user\n", "</s>\n<s>assistant x?\n"
BOTH = ChatForm(source=True, target=True)
SOURCE, TARGET = ChatForm(source=True), ChatForm(target=True)
TEXTS = TextSet("made up", "evaluation", tuple(f"line {n} says something about {n % 7} dogs" for n in range(12)))


@pytest.fixture(scope="module")
def model(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return load_model(hf_model=make_hf_model("llama"), tokenizer=own)


@pytest.fixture(scope="module")
def words(models_by_tokenizer):
    """A model whose tokens are words, or parts of them."""
    source = models_by_tokenizer["byte_level"]
    own = copy.deepcopy(source.tokenizer)
    own.chat_template = TEMPLATE
    torch.manual_seed(0)
    hf_model = type(source.original_model)(source.original_model.config).eval()
    return load_model(hf_model=hf_model, tokenizer=own)


@pytest.fixture(scope="module")
def facts(words):
    """Facts that the model knows when it is asked in a chat."""
    return make_facts(words, 3, form=Chat)


@pytest.fixture
def store(tmp_path):
    return ChunkStore(tmp_path)


def write(model, ids) -> str:
    return "".join(decode_each_token(model, ids))


class TestForms:
    def test_which_prompt_is_a_chat(self):
        assert (NO_CHAT.of_source("a"), NO_CHAT.of_target("b")) == ("a", "b")
        form = ChatForm(source=True, system="Hush.")
        assert (form.of_source("a"), form.of_target("b")) == (Chat("a", "Hush."), "b")
        form = ChatForm(target=True, system="Hush.")
        assert (form.of_source("a"), form.of_target("b")) == ("a", Chat("b", "Hush."))


class TestPositions:
    @pytest.mark.parametrize("name", ["model", "words"])
    def test_the_same_tokens_are_drawn(self, request, name):
        model = request.getfixturevalue(name)
        plain = sample_positions(model, TEXTS, 40, seed=3)
        in_chat = sample_positions(model, TEXTS, 40, seed=3, chat=BOTH)
        assert [sample.text for sample in plain.samples] == [sample.text for sample in in_chat.samples]
        for alone, chat in zip(plain.samples, in_chat.samples, strict=True):
            read = write(model, plain.tokens[alone.text][: alone.position + 1]).removeprefix("<s>")
            assert write(model, in_chat.tokens[chat.text][: chat.position + 1]) == BEFORE + read
        assert write(model, in_chat.tokens[0]) == BEFORE + TEXTS.texts[0] + BEHIND

    def test_what_is_beyond_the_context_is_not_drawn(self, model):
        long = TextSet("long", "evaluation", (("dog " * 200).strip(),))
        n_in_front = len(to_token_ids(model, Chat("d"))) - len("d") - len(to_token_ids(model, BEHIND)) + 1
        n_positions = model.cfg.n_ctx - 2 - n_in_front
        drawn = sample_positions(model, long, n_positions, seed=0, room=2, chat=SOURCE)
        assert max(sample.position for sample in drawn.samples) == model.cfg.n_ctx - 3
        with pytest.raises(PatchscopesError, match=f"have only {n_positions} positions"):
            sample_positions(model, long, n_positions + 1, seed=0, room=2, chat=SOURCE)

    @pytest.mark.parametrize("chat", [BOTH, SOURCE, TARGET])
    def test_two_models_have_read_the_same(self, model, words, chat):
        drawn = sample_aligned_positions(model, words, TEXTS, 30, seed=0, chat=chat)
        for number, pairs in drawn.pairs.items():
            text = TEXTS.texts[number]
            source, target = (
                to_token_ids(one, form) for one, form in ((model, chat.of_source(text)), (words, chat.of_target(text)))
            )
            for pair in pairs:
                read = [
                    write(one, ids[: position + 1]).removeprefix("<s>").removeprefix("user\n")
                    for one, ids, position in ((model, source, pair[0]), (words, target, pair[1]))
                ]
                assert read[0] == read[1]


class TestNextToken:
    def test_the_last_layer_is_the_models_own_prediction(self, model, store):
        config = NextTokenConfig(methods=("logit_lens",), n_samples=12, chat=BOTH)
        results, _ = next_token.run(model, TEXTS, config, store)
        assert results["methods"]["logit_lens"]["precision_at_1"]["mean"][-1] == 1

    def test_t_goes_on_behind_the_template(self, model):
        bands = [PromptBand(first=0, last=3, prompt="a ?", placeholder="?")]
        made = next_token.build_lenses(model, ("token_identity", "simplescope", "best_prompt"), {}, bands, TARGET)
        targets = [made["token_identity"].target, made["simplescope"].target, made["best_prompt"].targets[0]]
        for target, prompt in zip(targets, (build_token_identity_prompt(), "?", "a ?"), strict=True):
            assert write(model, target.tokens) == BEFORE + prompt + BEHIND
            assert write(model, target.tokens[: target.position + 1]) == BEFORE + prompt

    def test_only_the_source(self, model, store):
        """With T as it is, only the states change."""
        config = NextTokenConfig(methods=("simplescope",), n_samples=12, layers=(1, 3), chat=SOURCE)
        results, _ = next_token.run(model, TEXTS, config, store)
        drawn = sample_positions(model, TEXTS, 12, 0, chat=SOURCE)
        texts, positions = drawn.get_sources(drawn.samples)
        states = extract_representations(model, texts, positions, [1, 3])
        lens = next_token.build_lenses(model, ("simplescope",), {})["simplescope"]
        said = lens(states.flatten(0, 1), torch.tensor([1, 3] * 12)).argmax(dim=-1).view(12, 2)
        own = next_token.logit_lens(model, extract_representations(model, texts, positions, [3])[:, 0]).argmax(dim=-1)
        right = (said == own[:, None]).float().mean(dim=0)
        assert results["methods"]["simplescope"]["precision_at_1"]["mean"] == pytest.approx(right.tolist())

    def test_other_lenses(self, model):
        fixed = future_lens.build_fixed_prompt_target(model, TARGET.of_target("Tell me"))
        assert write(model, fixed.tokens[: fixed.position + 1]) == BEFORE + "Tell me"
        config = LensesConfig(methods=("future_lens", "token_identity"), future_lens="fixed_prompt", chat=TARGET)
        made = lenses.build_lenses(model, config)
        for method in config.methods:
            assert write(model, made[method]([], 0).target.tokens).endswith(BEHIND)
        targets, left_out = target_prompts.build_targets(
            model, [Candidate(prompt="a ?"), Candidate(prompt="a")], TARGET
        )
        assert [write(model, target.tokens) for target in targets.values()] == [BEFORE + "a ?" + BEHIND]
        assert len(left_out) == 1

    def test_which_target_prompt_reads_best(self, model, store):
        train = TextSet("made up", "train", TEXTS.texts)
        config = TargetPromptsConfig(layers=(0, 3), n_bands=1, n_train_samples=6, n_samples=6, chat=BOTH)
        results, _ = target_prompts.run(model, [Candidate(prompt="a ?")], train, TEXTS, config, store)
        assert results["bands"][0]["prompt"] == "a ?"
        # Those of the prompt, and of what is around it.
        assert results["train"]["candidates"][0]["n_tokens"] == len(to_token_ids(model, Chat("a ?")))


class TestTables:
    def test_figure_1(self, model):
        config = LayerReadoutConfig(source_prompt="A big dog", source_word="big", max_new_tokens=2, chat=BOTH)
        results = layer_readout.run(model, config)
        source, target = results["source_tokens"], results["target_tokens"]
        assert "".join(source[: results["source_position"] + 1]) == BEFORE + "A big"
        assert "".join(target[: results["target_position"] + 1]) == BEFORE + build_token_identity_prompt()
        assert "".join(target).endswith(BEHIND)

    def test_the_columns_of_a_prompt(self, model):
        """The prompt and what the template has behind it; what it has in front only as BOS is."""
        config = PromptTableConfig(prompt="dog", lens="simplescope", layers=(1,), chat=BOTH)
        assert "".join(prompt_table.run(model, config)["tokens"]) == "dog" + BEHIND
        assert "".join(prompt_table.run(model, PromptTableConfig(prompt="dog", bos=True, chat=SOURCE))["tokens"]) == (
            BEFORE + "dog" + BEHIND
        )
        # The model's own prediction is that after the chat.
        own = prompt_table.run(model, config)["own"]["top"][-1]
        said = generate_after(model, [Chat("dog")], max_new_tokens=1)
        assert own == decode_each_token(model, said[0])[0]


class TestEntities:
    CONFIG = EntityConfig(layers=(0, 2), max_new_tokens=3, chat=BOTH)

    def test_the_state_and_the_prompt(self, model):
        states = entity.extract_names(model, ["big dog", "Köln"], [0, 2], self.CONFIG)
        for name, of_name in zip(("big dog", "Köln"), states, strict=True):
            chat = as_chat(model, name)
            position = len(to_token_ids(model, chat[: chat.index(name) + len(name)])) - 1
            torch.testing.assert_close(of_name[1], extract_representation(model, chat, 2, position))
        target = entity.build_description_target(model, self.CONFIG)
        assert write(model, target.tokens[: target.position + 1]) == BEFORE + self.CONFIG.target_prompt
        filled = entity.fill_placeholder(self.CONFIG, "Oslo")
        assert as_chat(model, filled.prompt).endswith(f"consumer electronics corporation, Oslo{BEHIND}")

    def test_descriptions(self, model, store):
        names = [Entity(name="big dog", references=("an animal",)), Entity(name="Oslo", references=("a city",))]
        results, _ = entity.run(model, names, self.CONFIG, store)
        clear = generate_after(model, [entity.fill_placeholder(self.CONFIG, "Oslo")], max_new_tokens=3)
        assert results["entities"][1]["methods"]["name_in_clear"]["generation"] == model.tokenizer.batch_decode(
            clear, skip_special_tokens=True
        )
        by_layer = entity_layers.run(model, "Oslo", self.CONFIG, lambda one: None)
        said = results["entities"][1]["methods"]["patchscope"]["generation"]
        assert by_layer["methods"]["patchscope"]["generation"] == said

    def test_layer_grids(self, model):
        for template in NAME_TEMPLATES:
            target = build_target(model, template, BOTH)
            assert build_text(model, template, BOTH) == as_chat(model, template.prompt)
            assert write(model, target.tokens[: target.position + 1]).endswith(
                template.prompt[: template.prompt.rindex("x") + 1]
            )
        # A chat is one anyway; a system message of its own comes first.
        assert build_text(model, NAME_TEMPLATES[3]) == build_text(model, NAME_TEMPLATES[3], BOTH)
        with_system = ChatForm(target=True, system="Hush.")
        assert "Hush." in build_text(model, NAME_TEMPLATES[0], with_system)
        assert build_source(Entity(name="Oslo", references=("a city",))).prompt == "Oslo"

    def test_another_model_explains(self, model, words, store):
        config = CrossModelConfig(
            methods=("token_identity", "source_prompt"),
            layers=(0, 3),
            target_layers=(1, 3),
            mapping="identity",
            n_samples=8,
            entity=self.CONFIG,
            chat=BOTH,
        )
        names = [Entity(name="Oslo", references=("a city",))]
        results, _ = cross_model.run(model, model, TEXTS, names, config, store)
        # M* = M and f = identity: with T = S, the last layer into the last is what the model says itself.
        assert results["next_token"]["methods"]["source_prompt"]["precision_at_1"]["mean"][1][1] == 1
        assert results["next_token"]["methods"]["target_model_alone"]["precision_at_1"]["mean"] == 1


class TestOnePrompt:
    """Experiments in which S and T are one prompt."""

    def test_facts(self, words, facts):
        assert len(facts) == 3
        assert [one["known"] for one in find_known(words, facts, None, BOTH)] == [1, 1, 1]
        for fact in facts:
            known = tokenize_fact(words, fact, 0, BOTH)
            assert write(words, known.tokens) == BEFORE + fact.prompt + BEHIND
            subject = write(words, [known.tokens[place] for place in known.subject])
            assert subject.strip() == fact.subject

    def test_tracing_and_knockout(self, words, facts, store, tmp_path):
        tracing = CausalTracingConfig(n_samples=2, n_original=1, n_noise_samples=2, layers=(0, 2), window=2, chat=BOTH)
        results, _ = causal_tracing.run(words, facts, tracing, store)
        assert results["n_known"] == 3
        assert results["largest_probability_difference"] < 1e-4
        assert "".join(results["facts"][0]["tokens"]).endswith(BEHIND)
        knockout = AttentionKnockoutConfig(n_samples=2, layers=(0, 2), window=2, chat=BOTH)
        results, _ = attention_knockout.run(words, facts, knockout, ChunkStore(tmp_path / "knockout"))
        assert "".join(results["example"]["tokens"]) == BEFORE + results["example"]["prompt"] + BEHIND

    def test_two_hops(self, model):
        question = TwoHopQuestion(
            id=0,
            pi1="the DOG",
            pi2="Colour of {}",
            cue=" is",
            hop1_prompt="The DOG is",
            hop1_answer="x",
            hop2_answer="q",
            combined_question="Colour of the DOG is",
        )
        source, target = find_patch_positions(model, question, BOTH)
        query = to_token_ids(model, Chat(question.combined_question))
        assert write(model, query[: source + 1]) == BEFORE + "Colour of the DOG"
        assert write(model, query[: target + 1]) == BEFORE + "Colour of"
        for method in MultiHopConfig.PATCHED:
            tokens, position, prompt = build_patching(model, method, question, question, BOTH)
            assert write(model, tokens).startswith(BEFORE)
            assert write(model, tokens[: position + 1]).endswith("DOG")
            assert write(model, prompt.tokens).endswith(BEHIND)
        (said,) = ask_unpatched(model, [question], "vanilla", MultiHopConfig(max_new_tokens=3, chat=BOTH))
        after = generate_after(model, [Chat(question.combined_question)], max_new_tokens=3)
        assert said["text"] == model.tokenizer.batch_decode(after, skip_special_tokens=True)[0]

    def test_a_window_of_a_source_text(self, words):
        """What stands in front is kept; the window ends in the message."""
        text, sample = "Once upon a time there was a red DOG, who ran", RelationSample(subject="DOG", object="x")
        for seed in range(10):
            cut = cut_source_prompt(words, Chat(text), sample, np.random.default_rng(seed))
            written = write(words, cut.tokens)
            assert written.startswith(BEFORE)
            assert written.removeprefix(BEFORE) in text
            assert re.search(r"DOG$", write(words, cut.tokens[: cut.position + 1]))
        whole = take_source_prompt(words, Chat(text), sample)
        assert write(words, whole.tokens) == BEFORE + text + BEHIND


def test_a_model_without_a_template(llama, store):
    for chat in (SOURCE, TARGET):
        config = NextTokenConfig(methods=("simplescope",), n_samples=2, chat=chat)
        with pytest.raises(PatchscopesError, match="has no chat template; give the prompt itself"):
            next_token.run(llama, TEXTS, config, store)


def test_a_placeholder_of_the_template_is_none(model):
    """The template says an x and a question mark too."""
    for prompt, placeholder in (("What is x known for", "x"), ("? -> ? ->", "?"), ("x", "x")):
        target = placeholder_target(model, Chat(prompt), placeholder)
        assert write(model, target.tokens[: target.position + 1]) == (BEFORE + prompt[: prompt.rindex(placeholder) + 1])
