"""Prompts as the user chooses them: in a chat template, with target prompts of one's own; and the embedding as a layer.

What the forms do is tested with the experiments; here, that every script takes the options, and says what is wrong.
"""

import json
from dataclasses import asdict

import pytest
import torch
from conftest import CONFIGS, SPECIAL, byte_level
from made_up_facts import make_facts
from made_up_questions import make_questions
from made_up_relations import make_relation
from test_scripts import PNG, read, script
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from patchscopes.model.loading import load_model
from patchscopes.prompts import Chat, build_token_identity_prompt

TEMPLATE = (
    "{% for one in messages %}<s>{{ one.role }}\n{{ one.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """What the scripts learn about tiny models stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSCOPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def save(folder, template: str | None = None):
    """A tiny model that says words."""
    config = CONFIGS["llama"]()
    config.vocab_size = 1024
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("chat"), TEMPLATE)


@pytest.fixture(scope="module")
def files(chat_folder, tmp_path_factory):
    """Data of which the tiny model, asked in a chat, "knows" whatever it says."""
    folder, model = tmp_path_factory.mktemp("files"), load_model(str(chat_folder))
    (folder / "texts.txt").write_text("\n".join(f"line {number} is about {number % 7} dogs" for number in range(40)))
    (folder / "names.csv").write_text("entity,reference\nbig dog,an animal\nOslo,a city\n")

    questions = [asdict(question) | {"hop2_prompt": question.pi2} for question in make_questions(model, 4, form=Chat)]
    for question in questions:
        question["aliases"] = {"hop2_answer": question.pop("hop2_aliases")}
    facts = [
        {name: getattr(fact, name) for name in ("prompt", "subject", "attribute")}
        for fact in make_facts(model, 3, form=Chat)
    ]
    relation = asdict(make_relation(model, form=Chat))
    relation = {name: relation[name] for name in ("name", "prompt", "kind", "samples")}
    for name, content in (("questions", questions), ("facts", facts), ("relation", relation)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    names = [{"entity": one, "reference": "a", "keywords": ["one", "two"]} for one in ("RED DOG", "BIG CAT", "Oslo")]
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "prompts.txt").write_text("cat -> cat, ?\n")
    return folder


@pytest.fixture
def output(tmp_path):
    return ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]


FEW = ["--samples", 4]
COMMANDS = {
    "demo_fig1.py": ["--max-new-tokens", 2],
    "run_fig2.py": ["--methods", "logit_lens,token_identity,simplescope", "--dataset", "texts.txt", *FEW],
    "run_prompt_table.py": ["dog", "--lens", "simplescope"],
    "run_target_prompts.py": ["prompts.txt", "--dataset", "texts.txt", "--train-samples", 4, "--bands", 1, *FEW],
    "run_future_lens.py": ["--methods", "fixed_prompt,token_identity", "--dataset", "texts.txt", *FEW],
    "run_lenses.py": ["--methods", "logit_lens,logit_lens_patchscope,token_identity", "--dataset", "texts.txt", *FEW],
    "run_entity.py": ["names.csv", "--max-new-tokens", 2],
    "run_entity_interactive.py": ["big dog", "--max-new-tokens", 2],
    "run_attributes_interactive.py": ["DOG", "--relation", "relation.json", "--max-new-tokens", 2],
    "run_attributes.py": [
        "relation.json",
        "--methods",
        "patchscope,probe",
        "--prompts",
        2,
        "--samples",
        8,
        "--max-new-tokens",
        2,
    ],
    "run_layer_grid.py": ["--entities", "names.json", "--max-new-tokens", 2, "--history-file", "runs.jsonl"],
}
ONE_PROMPT_COMMANDS = {
    "run_multi_hop.py": ["questions.json", "--max-new-tokens", 8, "--cot-new-tokens", 4],
    "run_multi_hop_interactive.py": [
        "--hop2",
        "Colour of",
        "--hop1",
        "the DOG",
        "--layers",
        "0",
        "--max-new-tokens",
        2,
    ],
    "run_causal_tracing.py": ["facts.json", "--noise-samples", 2],
    "run_attention_knockout.py": ["facts.json"],
    "run_entity_resolution.py": ["facts.json", "--methods", "description,tracing,knockout", "--noise-samples", 2],
}

# Whose layers are those that windows are centred on.
WINDOWS = ("run_attention_knockout.py", "run_entity_resolution.py")


def build_command(name: str, arguments: list, files, tmp_path) -> list:
    """The command with its files in place."""
    placed = [files / one if (files / str(one)).is_file() else one for one in arguments]
    return [name, *[tmp_path / one if one == "runs.jsonl" else one for one in placed]]


class TestChat:
    @pytest.mark.parametrize("name", [*COMMANDS, *ONE_PROMPT_COMMANDS])
    def test_every_script_with_prompts(self, name, files, chat_folder, tmp_path, output):
        """Both prompts in a chat, and the embedding among the layers where it can be."""
        command = build_command(name, (COMMANDS | ONE_PROMPT_COMMANDS)[name], files, tmp_path)
        layers = [0, 2] if name in WINDOWS else [-1, 2]
        more = ["--target-layers", "embedding,1"] if name in ("run_layer_grid.py", "run_multi_hop.py") else []
        more += ["--layers", "0,2" if name in WINDOWS else "embedding,2"]
        done = script(*command, "--model", chat_folder, *more, *output, "--chat")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["config"]["chat"] == {"source": True, "target": True, "system": None}
        results = document["results"]
        assert (results["grids"][0] if "grids" in results else results)["layers"] == layers
        assert "layer -1" not in done.stdout
        assert "ℓ = -1" not in done.stdout

    def test_one_of_the_prompts(self, files, chat_folder, plain_folder, tmp_path, output):
        command = build_command("run_fig2.py", COMMANDS["run_fig2.py"], files, tmp_path)
        results = []
        for folder in (plain_folder, chat_folder):
            done = script(*command, "--model", folder, *output)
            assert done.returncode == 0, done.stderr
            document = read(tmp_path / "out.json")
            assert "chat" not in document["config"]
            results.append(document["results"])
        assert results[0] == results.pop()
        done = script(*command, "--model", chat_folder, *output, "--chat", "source", "--system", "Hush.")
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert document["config"]["chat"] == {"source": True, "target": False, "system": "Hush."}
        assert document["results"] not in results

    @pytest.mark.parametrize("name", ["demo_fig1.py", "run_multi_hop_interactive.py"])
    def test_a_model_without_a_template(self, name, files, plain_folder, tmp_path, output):
        command = build_command(name, (COMMANDS | ONE_PROMPT_COMMANDS)[name], files, tmp_path)
        done = script(*command, "--model", plain_folder, *output, "--chat")
        assert done.returncode == 1
        assert "has no chat template; give the prompt itself" in done.stderr.strip().splitlines()[-1]

    def test_two_models_of_which_one_has_a_template(self, files, chat_folder, plain_folder, tmp_path, output):
        command = ["run_cross_model.py", "--dataset", files / "texts.txt", "--entities", files / "names.csv"]
        command += ["--samples", 4, "--layers", "embedding,2", "--target-layers", "embedding", "--mapping", "identity"]
        models = ["--source-model", chat_folder, "--target-model", plain_folder]
        done = script(*command, *models, *output, "--max-new-tokens", 2, "--chat", "source")
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert document["config"]["chat"] == {"source": True, "target": False, "system": None}
        assert (document["results"]["layers"], document["results"]["target_layers"]) == ([-1, 2], [-1])
        assert "ℓ* = embedding" in done.stdout
        # M describes its own states too, so that T is read by both.
        for given in (models, [models[0], plain_folder, models[2], chat_folder]):
            done = script(*command, *given, *output, "--chat", "target")
            assert done.returncode == 1
            assert "has no chat template" in done.stderr


class TestFigure1:
    def test_ones_own_target_prompt(self, plain_folder, tmp_path, output):
        target = ["--target-prompt", "the word _ means", "--placeholder", "_"]
        done = script("demo_fig1.py", "--model", plain_folder, *target, "--layers", "embedding,1", *output)
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert (document["config"]["target_prompt"], document["config"]["placeholder"]) == ("the word _ means", "_")
        results = document["results"]
        assert "".join(results["target_tokens"][: results["target_position"] + 1]) == "<s>the word _"
        assert (results["layers"], document["config"]["layers"]) == ([-1, 1], [-1, 1])
        assert "layer embedding: " in done.stdout
        assert document["config"]["target_prompt"] != build_token_identity_prompt()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--placeholder", "#"], "has no placeholder '#'; put one into it"),
            (["--target-prompt", "nothing here"], "has no placeholder '?'; put one into it"),
            (["--target-prompt", ""], "has no placeholder '?'; put one into it"),
        ],
    )
    def test_without_a_placeholder(self, plain_folder, output, arguments, message):
        done = script("demo_fig1.py", "--model", plain_folder, *arguments, *output)
        assert done.returncode == 1
        assert message in done.stderr


class TestEmbedding:
    @pytest.mark.parametrize("name", ["run_attention_knockout.py", "run_entity_resolution.py"])
    def test_windows_are_of_blocks(self, name, files, chat_folder, tmp_path, output):
        command = build_command(name, ONE_PROMPT_COMMANDS[name], files, tmp_path)
        done = script(*command, "--model", chat_folder, "--layers", "embedding,2", *output)
        assert done.returncode == 1
        assert "windows of attention knockout are centred on blocks" in done.stderr

    @pytest.mark.parametrize(
        ("name", "methods"),
        [
            ("run_fig2.py", "tuned_lens,best_prompt"),
            ("run_future_lens.py", "linear"),
            ("run_lenses.py", "tuned_lens,tuned_lens_patchscope"),
        ],
    )
    def test_learned_lenses(self, name, methods, files, chat_folder, tmp_path, output):
        """What is not asked of blocks alone is learned of the embedding too."""
        bands = [{"first": 0, "last": 3, "prompt": "a ?", "placeholder": "?"}]
        chosen = {"experiment": "target_prompts", "results": {"bands": bands}}
        (tmp_path / "best.json").write_text(json.dumps(chosen))
        best = ["--best-prompt", tmp_path / "best.json"] if "best" in methods else []
        command = [name, "--methods", methods, "--samples", 4, "--dataset", files / "texts.txt", *best]
        done = script(*command, "--model", chat_folder, "--layers", "embedding,3", *output)
        assert done.returncode == 0, done.stderr
        results = read(tmp_path / "out.json")["results"]
        assert results["layers"] == [-1, 3]
        assert all(len(results["methods"][method]["surprisal"]["mean"]) in (2, 3) for method in methods.split(","))

    def test_the_jacobian_lens_has_none(self, files, chat_folder, output):
        command = ["run_fig2.py", "--methods", "jacobian_lens", "--samples", 4, "--dataset", files / "texts.txt"]
        done = script(*command, "--model", chat_folder, "--layers", "embedding,3", *output)
        assert done.returncode == 1
        assert "jacobian_lens has no map from what enters block 0" in done.stderr
