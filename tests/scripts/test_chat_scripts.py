"""Prompts as the user chooses them: in a chat template, with target prompts of one's own; and the embedding as a layer.

What the forms do is tested with the experiments; here, that every script takes the options, and says what is wrong.
"""

import copy
import json
from dataclasses import asdict

import pytest
from conftest import make_hf_model
from made_up_relations import make_relation
from test_scripts import PNG, read, script

from patchscopes.data.questions import TEXT_FIELDS
from patchscopes.engine.unpatched import generate_after
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


def save(folder, tokenizer):
    make_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_folder(tokenizer, tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain"), tokenizer)


@pytest.fixture(scope="module")
def chat_folder(tokenizer, tmp_path_factory):
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return save(tmp_path_factory.mktemp("chat"), own)


@pytest.fixture(scope="module")
def files(chat_folder, tmp_path_factory):
    """Data of which the tiny model, asked in a chat, "knows" whatever it says."""
    folder, model = tmp_path_factory.mktemp("files"), load_model(str(chat_folder))
    (folder / "texts.txt").write_text("\n".join(f"line {number} is about {number % 7} dogs" for number in range(40)))
    (folder / "names.csv").write_text("entity,reference\nbig dog,an animal\nOslo,a city\n")

    def says(prompt: str) -> list[str]:
        return list(model.tokenizer.decode(generate_after(model, [Chat(prompt)], max_new_tokens=8)[0]).strip("<>/s"))

    rows, facts = [], []
    for number, (one, other) in enumerate([("DOG", "Colour"), ("CAT", "Age"), ("COW", "Size"), ("FISH", "Home")]):
        hop1 = [sign for sign in says(f"The {one} is") if sign.isalnum()]
        hop2 = [sign for sign in says(f"{other} of {hop1[0]} is") if sign.isalnum()]
        texts = (f"The {one} is", hop1[0], f"{other} of", hop2[0], f"{other} of the {one} is")
        rows.append({"id": number, **dict(zip(TEXT_FIELDS, texts, strict=True))})
        attribute = says(f"A {one} is")[0]
        if attribute.isalnum():
            facts.append({"prompt": f"A {one} is", "subject": one, "attribute": attribute})
    (folder / "questions.json").write_text(json.dumps(rows))
    (folder / "facts.json").write_text(json.dumps(facts))
    relation = asdict(make_relation(model))
    for sample in relation["samples"]:
        sample["object"] = next(
            sign for sign in says(relation["prompt"].replace("{}", sample["subject"])) if sign.isalnum()
        )
    (folder / "relation.json").write_text(
        json.dumps({name: relation[name] for name in ("name", "prompt", "kind", "samples")}, default=list)
    )
    return folder


@pytest.fixture
def output(tmp_path):
    return ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]


FEW = ["--samples", 4, "--layers", "0,2"]
COMMANDS = {
    "demo_fig1.py": ["--max-new-tokens", 2],
    "run_fig2.py": ["--methods", "logit_lens,token_identity,simplescope", "--dataset", "texts.txt", *FEW],
    "run_prompt_table.py": ["dog", "--lens", "simplescope"],
    "run_target_prompts.py": ["prompts.txt", "--dataset", "texts.txt", "--train-samples", 4, "--bands", 1, *FEW],
    "run_future_lens.py": ["--methods", "fixed_prompt,token_identity", "--dataset", "texts.txt", *FEW],
    "run_lenses.py": ["--methods", "logit_lens,logit_lens_patchscope,token_identity", "--dataset", "texts.txt", *FEW],
    "run_entity.py": ["names.csv", "--max-new-tokens", 2, "--layers", "0,2"],
    "run_entity_interactive.py": ["big dog", "--max-new-tokens", 2, "--layers", "0,2"],
    "run_attributes_interactive.py": ["DOG", "--relation", "relation.json", "--layers", "0,2", "--max-new-tokens", 2],
    "run_attributes.py": ["relation.json", "--methods", "patchscope,probe", "--layers", "0", "--max-new-tokens", 2],
    "run_layer_grid.py": ["--entities", "names.json", "--max-new-tokens", 2, "--history-file", "runs.jsonl"],
}
ONE_PROMPT_COMMANDS = {
    "run_multi_hop.py": ["questions.json", "--layers", "0,2", "--max-new-tokens", 8, "--cot-new-tokens", 4],
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
    "run_causal_tracing.py": ["facts.json", "--layers", "0,2", "--noise-samples", 2],
    "run_attention_knockout.py": ["facts.json", "--layers", "0,2"],
    "run_entity_resolution.py": ["facts.json", "--methods", "description,tracing,knockout", "--noise-samples", 2],
}


def build_command(name: str, arguments: list, files, tmp_path) -> list:
    """The command with its files in place."""
    (files / "prompts.txt").write_text("cat -> cat, ?\n")
    names = [{"entity": one, "reference": "a", "keywords": ["one", "two"]} for one in ("RED DOG", "BIG CAT", "Oslo")]
    (files / "names.json").write_text(json.dumps(names))
    placed = [files / one if (files / str(one)).is_file() else one for one in arguments]
    return [name, *[tmp_path / one if one == "runs.jsonl" else one for one in placed]]


class TestChat:
    @pytest.mark.parametrize("name", [*COMMANDS, *ONE_PROMPT_COMMANDS])
    def test_both_prompts(self, name, files, chat_folder, tmp_path, output):
        command = build_command(name, (COMMANDS | ONE_PROMPT_COMMANDS)[name], files, tmp_path)
        done = script(*command, "--model", chat_folder, *output, "--system", "Hush.", "--chat")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        assert read(tmp_path / "out.json")["config"]["chat"] == {"source": True, "target": True, "system": "Hush."}

    @pytest.mark.parametrize("name", ["run_fig2.py", "run_entity.py"])
    def test_without_it_the_result_file_says_nothing_of_it(
        self, name, files, chat_folder, plain_folder, tmp_path, output
    ):
        command = build_command(name, COMMANDS[name], files, tmp_path)
        results = []
        for folder in (plain_folder, chat_folder):
            done = script(*command, "--model", folder, *output)
            assert done.returncode == 0, done.stderr
            document = read(tmp_path / "out.json")
            assert "chat" not in document["config"]
            results.append(document["results"])
        assert results[0] == results[1]
        for side in ("source", "target"):
            done = script(*command, "--model", chat_folder, *output, "--chat", side)
            document = read(tmp_path / "out.json")
            assert document["config"]["chat"] == {
                "source": side == "source",
                "target": side == "target",
                "system": None,
            }
            assert document["results"] not in results
            results.append(document["results"])

    @pytest.mark.parametrize("name", [*COMMANDS, *ONE_PROMPT_COMMANDS])
    def test_a_model_without_a_template(self, name, files, plain_folder, tmp_path, output):
        command = build_command(name, (COMMANDS | ONE_PROMPT_COMMANDS)[name], files, tmp_path)
        done = script(*command, "--model", plain_folder, *output, "--chat")
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert "has no chat template; give the prompt itself" in line

    def test_two_models_of_which_one_has_a_template(self, files, chat_folder, plain_folder, tmp_path, output):
        command = ["run_cross_model.py", "--dataset", files / "texts.txt", "--entities", files / "names.csv"]
        command += ["--samples", 4, "--layers", "0,2", "--target-layers", "1", "--mapping", "identity", *output]
        models = ["--source-model", plain_folder, "--target-model", chat_folder]
        done = script(*command, *models, "--max-new-tokens", 2, "--chat", "target")
        assert done.returncode == 0, done.stderr
        assert read(tmp_path / "out.json")["config"]["chat"]["target"]
        done = script(*command, *models, "--chat")
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
    @pytest.mark.parametrize("name", [*COMMANDS, *ONE_PROMPT_COMMANDS])
    def test_as_a_layer(self, name, files, chat_folder, tmp_path, output):
        command = build_command(name, (COMMANDS | ONE_PROMPT_COMMANDS)[name], files, tmp_path)
        more = ["--target-layers", "embedding,1"] if name in ("run_layer_grid.py", "run_multi_hop.py") else []
        done = script(*command, "--model", chat_folder, "--chat", "both", "--layers", "embedding,2", *more, *output)
        if name in ("run_attention_knockout.py", "run_entity_resolution.py"):
            assert done.returncode == 1
            assert "windows of attention knockout are centred on blocks" in done.stderr
            return
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        results = read(tmp_path / "out.json")["results"]
        assert (results["grids"][0] if "grids" in results else results)["layers"] == [-1, 2]

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
