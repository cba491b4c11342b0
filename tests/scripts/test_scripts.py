"""The scripts, on a tiny saved model and the user's own texts; some as a user runs them, in a process of their own."""

import json
import runpy
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import lru_cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, SPECIAL, byte_level, sentencepiece_like
from made_up_facts import make_facts
from made_up_names import TEMPLATES, make_names
from made_up_questions import make_questions
from made_up_relations import make_relation
from transformer_lens.tools.analysis import JacobianLens
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from patchscopes.data.questions import TEXT_FIELDS
from patchscopes.learned.mappings import load_maps
from patchscopes.model import loading
from patchscopes.model.embedded import get_cache_folder, unpack_embedded_model
from patchscopes.model.lens_model import LensModel
from patchscopes.model.loading import load_model
from patchscopes.model.registry import EMBEDDED_MODEL

SCRIPTS = ROOT / "scripts"
PNG = b"\x89PNG\r\n\x1a\n"


def in_a_process(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """A script as the user runs it."""
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@lru_cache(maxsize=2)
def load_stamped(name: str, stamp: tuple, **chosen: object) -> LensModel:
    return load_model(name, **chosen)


def load_once(name: str, **chosen: object) -> LensModel:
    """`load_model`, and the proof of the engine with it, once for runs one after the other on the same files."""
    stamp = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(Path(name).glob("*")))
    return load_stamped(name, stamp, **chosen)


def script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """A script in this process, which spares its imports; anything but an orderly exit fails the test."""
    printed, error, status = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(error):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        # Two models are two, on the same files too.
        if name != "run_cross_model.py":
            patch.setattr(loading, "load_model", load_once)
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        except SystemExit as ended:
            # As the interpreter does with a message.
            status = ended.code if isinstance(ended.code, int) else 1
            error.write("" if isinstance(ended.code, int) else str(ended.code))
    return subprocess.CompletedProcess(name, status, printed.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"line {number} says something about {number % 7} dogs" for number in range(60)))
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """What the scripts learn about tiny models stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        unpack_embedded_model()
        folder = tmp_path_factory.mktemp("cache")
        for path in get_cache_folder().glob("smollm2-*"):
            (folder / path.name).symlink_to(path)
        patch.setenv("PATCHSCOPES_CACHE", str(folder))
        yield folder


@pytest.fixture
def output(tmp_path):
    return ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]


@pytest.fixture
def fig2_arguments(model_folder, texts, tmp_path):
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
    return ["--model", model_folder, "--dataset", texts, "--num-samples", 400, *output]


def read(path) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not strict JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


class TestFig2:
    def test_writes_the_figure_and_all_numbers(self, fig2_arguments, tmp_path, model_folder):
        done = in_a_process("run_fig2.py", *fig2_arguments, "--layers", "0,2-3", "--seed", 3)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert (document["experiment"], document["schema_version"]) == ("next_token", 1)
        assert document["config"]["layers"] == [0, 2, 3]
        assert document["config"]["seed"] == 3
        assert document["environment"]["model"]["id"] == str(model_folder)
        assert set(document["results"]["methods"]) == {"logit_lens", "tuned_lens", "token_identity", "simplescope"}
        made = document["environment"]["learned"]["tuned_lens"]
        assert made["estimator"] == "least_squares"
        assert made["dataset"]["sha256"] != document["environment"]["dataset"]["sha256"]
        assert document["timing"]["seconds"]["total"] > 0
        assert "logit_lens" in done.stdout

    def test_killed_at_any_moment_it_goes_on_and_ends_the_same(self, fig2_arguments, tmp_path):
        command = [sys.executable, str(SCRIPTS / "run_fig2.py"), *map(str, fig2_arguments)]
        chunks = tmp_path / "out.chunks"
        for wanted in (1, 4):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(list(chunks.glob("*/*.json"))) < wanted:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (tmp_path / "out.json").exists()
        kept = {path.name: path.stat().st_mtime_ns for path in chunks.glob("*/*.json")}
        assert len(kept) >= 4
        assert in_a_process("run_fig2.py", *fig2_arguments).returncode == 0
        resumed = read(tmp_path / "out.json")
        # The chunks that were there have not been computed again.
        assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in chunks.glob("*/*.json")}.items()
        assert in_a_process("run_fig2.py", *fig2_arguments, "--fresh").returncode == 0
        uninterrupted = read(tmp_path / "out.json")
        assert resumed["results"] == uninterrupted["results"]
        assert kept.items().isdisjoint({path.name: path.stat().st_mtime_ns for path in chunks.glob("*/*.json")}.items())


class TestTargetPrompts:
    def test_ones_own_prompts_and_the_best_in_figure_2(self, model_folder, texts, tmp_path, output):
        prompts = tmp_path / "prompts.csv"
        prompts.write_text('prompt,placeholder,family\nThe end. ?,,words\n"dogs, ?",,words\nsay héé now,héé,\n')
        common = ["--model", model_folder, "--dataset", texts, "--layers", "0,2-3"]
        command = ["run_target_prompts.py", prompts, *common, "--train-samples", 40, "--samples", 50, "--bands", 2]
        done = script(*command, *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "target_prompts"
        assert document["environment"]["train_dataset"]["sha256"] != document["environment"]["dataset"]["sha256"]
        results = document["results"]
        tried = [candidate["prompt"] for candidate in results["train"]["candidates"]]
        assert tried == ["The end. ?", "dogs, ?", "cat -> cat\n1135 -> 1135\nhello -> hello\n?", "?"]
        assert "left out: the placeholder 'héé' is not one token of its own" in done.stdout
        for band in results["bands"]:
            assert f"layers {band['first']}–{band['last']}: {band['prompt']!r}" in done.stdout
        again = script(*command, *output)
        assert again.returncode == 0
        assert read(tmp_path / "out.json")["results"] == results

        best = ["--methods", "best_prompt,simplescope", "--best-prompt", tmp_path / "out.json", "--samples", 50]
        figure = ["--output-json", tmp_path / "fig2.json", "--output-plot", tmp_path / "fig2.png"]
        done = script("run_fig2.py", *common, *best, *figure)
        assert done.returncode == 0, done.stderr
        figure_2 = read(tmp_path / "fig2.json")
        assert [band["prompt"] for band in figure_2["config"]["best_prompt"]] == [
            band["prompt"] for band in results["bands"]
        ]
        for method, measures in figure_2["results"]["methods"].items():
            assert measures == results["methods"][method]
        done = script("run_prompt_table.py", "dog", *common, "--lens", "best_prompt", *best[2:4], *figure)
        assert done.returncode == 0, done.stderr
        table = read(tmp_path / "fig2.json")
        assert table["config"]["best_prompt"] == figure_2["config"]["best_prompt"]
        assert list(table["results"]["methods"]) == ["best_prompt"]
        wrong = script("run_fig2.py", *common, *best[:3], tmp_path / "fig2.json", *figure)
        assert wrong.returncode == 1
        assert "is no result of run_target_prompts.py" in wrong.stderr


class TestLearnedLenses:
    def test_train_then_draw_the_figures(self, model_folder, texts, tmp_path, output):
        common = ["--model", model_folder, "--dataset", texts]
        few = ["--steps", 4, "--evaluate-every", 2, "--batch-size", 8]
        files = {}
        for lens, options in (
            ("tuned_lens", ["--train-positions", 500]),
            ("tuned_lens_kl", few),
            ("jacobian_lens", ["--texts", 3, "--dim-batch", 32]),
            ("linear", ["--ridge", "0.01"]),
            ("learned_prompt", [*few, "--train-samples", 30]),
        ):
            files[lens] = tmp_path / f"{lens}.safetensors"
            done = script("train_lens.py", *common, "--lens", lens, *options, "--output", files[lens])
            assert done.returncode == 0, done.stderr
            assert files[lens].is_file()
            assert ("500 positions" in done.stdout) == (lens == "tuned_lens")
            assert ("positions in 3 texts" in done.stdout) == (lens == "jacobian_lens")
            assert ("held-out KL" in done.stdout) == (lens in ("tuned_lens_kl", "learned_prompt"))

        samples = ["--samples", 20, *output]
        tuned, prompt = files["tuned_lens"], files["learned_prompt"]
        done = script("run_lenses.py", *common, *samples, "--tuned-lens", tuned, "--soft-prompt", prompt)
        assert done.returncode == 0, done.stderr
        assert "jacobian_lens" not in read(tmp_path / "out.json")["results"]["twins"]
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "lenses"
        assert document["environment"]["learned"]["tuned_lens"]["n_positions"] == 500
        assert max(twin["largest_difference"] for twin in document["results"]["twins"].values()) < 1e-3
        assert "largest logit difference" in done.stdout

        done = script(
            "run_future_lens.py", *common, *samples, "--linear-maps", files["linear"], "--soft-prompt", prompt
        )
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "future_lens"
        assert document["environment"]["learned"]["linear"]["options"]["ridge"] == 0.01
        assert "surprisal" in done.stdout

        asked = ["--methods", "jacobian_lens,jacobian_lens_patchscope", "--jacobian-lens", files["jacobian_lens"]]
        done = script("run_lenses.py", *common, *samples, *asked)
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert document["environment"]["learned"]["jacobian_lens"]["options"]["n_texts"] == 3
        assert document["results"]["twins"]["jacobian_lens"]["largest_difference"] < 1e-4
        done = script("run_fig2.py", *common, *samples, "--methods", "jacobian_lens", *asked[2:])
        assert done.returncode == 0, done.stderr
        assert set(read(tmp_path / "out.json")["results"]["methods"]) == {"jacobian_lens"}

        methods = ["--methods", "tuned_lens,tuned_lens_kl", "--tuned-lens-kl", files["tuned_lens_kl"]]
        done = script("run_fig2.py", *common, *samples, *methods)
        assert done.returncode == 0, done.stderr
        assert set(read(tmp_path / "out.json")["results"]["methods"]) == {"tuned_lens", "tuned_lens_kl"}

        wrong = script("run_lenses.py", *common, *samples, "--tuned-lens", prompt)
        assert wrong.returncode == 1
        assert "not a file of affine maps" in wrong.stderr
        assert "Traceback" not in wrong.stderr
        wrong = script("run_fig2.py", *common, *samples, *methods[:3], tuned)
        assert "holds maps made by least_squares; this option is for maps made by kl" in wrong.stderr
        assert "Traceback" not in wrong.stderr

    def test_maps_from_the_embedding(self, model_folder, texts, tmp_path):
        common = ["--model", model_folder, "--dataset", texts, "--output", tmp_path / "maps.safetensors"]
        done = script("train_lens.py", *common, "--layers", "embedding,0")
        assert done.returncode == 0, done.stderr
        # Of all blocks too, whichever are named.
        assert load_maps(tmp_path / "maps.safetensors").keys() == {(layer, 3, 0) for layer in range(-1, 4)}

    def test_a_published_jacobian_lens(self, model_folder, tmp_path):
        lens = JacobianLens({layer: torch.randn(32, 32) for layer in range(3)}, n_prompts=7, d_model=32)
        lens.save(str(tmp_path / "lens.pt"))
        common = ["--model", model_folder, "--lens", "jacobian_lens", "--output", tmp_path / "out.safetensors"]
        done = script("train_lens.py", *common, "--pretrained", tmp_path / "lens.pt")
        assert done.returncode == 0, done.stderr
        assert "4 maps from 7 texts" in done.stdout
        assert load_maps(tmp_path / "out.safetensors").keys() == {(layer, 3, 0) for layer in range(4)}
        assert not load_maps(tmp_path / "out.safetensors")[0, 3, 0].bias.any()
        done = script("train_lens.py", *common, "--pretrained", tmp_path / "lens.pt", "--centred")
        assert done.returncode == 0, done.stderr
        assert load_maps(tmp_path / "out.safetensors")[0, 3, 0].bias.any()
        # The folder of the model holds none.
        wrong = script("train_lens.py", *common, "--pretrained")
        assert "no Jacobian Lens" in wrong.stderr

    def test_interrupted_training_goes_on(self, model_folder, texts, tmp_path, cache):
        steps = ["--steps", 40, "--evaluate-every", 2, "--batch-size", 64]
        arguments = ["--model", model_folder, "--dataset", texts, "--lens", "tuned_lens_kl", "--layers", "0-1", *steps]
        command = [sys.executable, SCRIPTS / "train_lens.py", *arguments, "--output", tmp_path / "killed.safetensors"]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(cache.glob("lenses/*.checkpoint")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed.safetensors").exists()
        resumed, whole = (
            script("train_lens.py", *arguments, *fresh, "--output", tmp_path / f"{name}.safetensors")
            for name, fresh in (("killed", []), ("whole", ["--fresh"]))
        )
        assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
        assert resumed.stdout.splitlines()[:-1] == whole.stdout.splitlines()[:-1]
        files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("killed", "whole")]
        assert files[0] == files[1]


class TestPromptTable:
    @pytest.mark.parametrize(
        ("lens", "color"),
        [("logit_lens", "probability"), ("tuned_lens", "kl"), ("token_identity", "rank"), ("simplescope", "kl")],
    )
    def test_lenses_and_colours(self, model_folder, texts, tmp_path, output, lens, color):
        prompt = ["a $5 <big>\tdog", "--lens", lens, "--color", color, "--layers", "0,2-3"]
        done = script("run_prompt_table.py", *prompt, "--model", model_folder, "--dataset", texts, *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "prompt_table"
        assert set(document["environment"]["learned"]) == ({"tuned_lens"} if lens == "tuned_lens" else set())
        results = document["results"]
        assert "".join(results["tokens"]) == "a $5 <big>\tdog"
        assert results["positions"] == list(range(1, 15))
        assert results["layers"] == [0, 2, 3]
        for measure in ("top", "probability", "rank", "kl"):
            assert np.shape(results["methods"][lens][measure]) == (3, 14)
        assert "the model says" in done.stdout

    @pytest.mark.parametrize(
        ("lens", "options"),
        [("tuned_lens", ["--train-positions", 500]), ("jacobian_lens", ["--texts", 3, "--dim-batch", 32])],
    )
    def test_bos_and_a_lens_from_a_file(self, model_folder, texts, tmp_path, output, lens, options):
        common = ["--model", model_folder, "--dataset", texts, "--lens", lens]
        file = tmp_path / "lens.safetensors"
        assert script("train_lens.py", *common, *options, "--output", file).returncode == 0
        done = script("run_prompt_table.py", "dog", "--bos", f"--{lens.replace('_', '-')}", file, *common, *output)
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert document["results"]["tokens"] == ["<s>", "d", "o", "g"]
        assert list(document["results"]["methods"]) == list(document["environment"]["learned"]) == [lens]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["x" * 121], "the prompt has 121 tokens, and a figure shows at most 120: shorten it"),
            (["x" * 600], "the text has 601 tokens, the model reads at most 512; shorten it"),
            (["dog", "--layers", "4", "--lens", "tuned_lens"], "layer 4 does not exist"),
        ],
    )
    def test_what_fits_no_figure_is_told_before_anything_is_learned(self, model_folder, output, arguments, message):
        done = script("run_prompt_table.py", *arguments, "--model", model_folder, *output)
        assert done.returncode == 1
        assert message in done.stderr
        assert "fitting" not in done.stderr
        assert "Traceback" not in done.stderr


class TestEntity:
    def test_ones_own_entities(self, model_folder, tmp_path, output):
        (tmp_path / "own.csv").write_text("entity,reference,popularity\nbig dog,an animal,well_known\nOslo,a city,\n")
        few = ["--layers", "0-1", "--max-new-tokens", 4, *output]
        done = script("run_entity.py", tmp_path / "own.csv", "--model", model_folder, *few)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "entity"
        assert [one["entity"] for one in document["results"]["entities"]] == ["big dog", "Oslo"]
        assert set(document["results"]["popularity"]) == {"well_known", "unspecified"}
        assert "rougeL_f1_of_description" in done.stdout

    def test_one_name(self, model_folder, tmp_path, output):
        few = ["--layer-range", "1-3", "--max-new-tokens", 4, *output]
        done = script("run_entity_interactive.py", "a [big] dog", "--model", model_folder, *few)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        results = read(tmp_path / "out.json")["results"]
        assert results["layers"] == [1, 2, 3]
        assert "what the model says" in done.stdout
        assert "a [big] dog" in done.stdout


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """A model of another family, width, depth and tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    config = CONFIGS["gpt2"]()
    config.vocab_size, config.n_embd, config.n_layer = 1024, 24, 3
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=sentencepiece_like(), **SPECIAL).save_pretrained(folder)
    return folder


class TestCrossModel:
    def test_two_models(self, model_folder, other_folder, texts, tmp_path, output):
        names = tmp_path / "names.csv"
        names.write_text("entity,reference\nSyria,country in the Middle East\nWales,part of the United Kingdom\n")
        arguments = ["--source-model", model_folder, "--target-model", other_folder, "--dataset", texts]
        arguments += ["--entities", names, "--samples", 20, "--max-new-tokens", 3, *output]
        first = script("run_cross_model.py", *arguments)
        assert first.returncode == 0, first.stderr
        assert "f was fitted on" in first.stdout
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        results = document["results"]
        assert (results["layers"], results["target_layers"]) == ([0, 1, 2, 3], [0, 1, 2])
        learned = document["environment"]["learned"]["f"]
        assert learned["source_model"]["id"] == str(model_folder)
        assert learned["target_model"] == document["environment"]["target_model"]
        assert len(results["entity"]["entities"]) == 2
        assert np.array(results["next_token"]["methods"]["token_identity"]["surprisal"]["mean"]).shape == (4, 3)
        # Again from the chunks and the fitted maps.
        again = script("run_cross_model.py", *arguments)
        assert "fitting" not in again.stderr
        assert read(tmp_path / "out.json")["results"] == results


@pytest.fixture(scope="module")
def questions(model_folder, tmp_path_factory):
    """Of which the tiny model "knows" whatever it says."""
    path = tmp_path_factory.mktemp("questions") / "own.json"
    rows = []
    for question in make_questions(load_model(str(model_folder)), 6):
        row = {name: getattr(question, name) for name in ("id", "category", *TEXT_FIELDS)}
        row["hop2_prompt_prefix"] = question.pi2.removesuffix(" {}")
        rows.append(row | {"aliases": {"hop2_answer": list(question.hop2_aliases)}})
    path.write_text(json.dumps(rows))
    return path


class TestMultiHop:
    def test_ones_own_questions(self, questions, model_folder, tmp_path, output):
        arguments = [questions, "--model", model_folder, "--samples", 3, "--max-new-tokens", 5, "--cot-new-tokens", 5]
        done = script("run_multi_hop.py", *arguments, "--target-layers", "0-1,3", *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        results = read(tmp_path / "out.json")["results"]
        assert (results["layers"], results["target_layers"]) == ([0, 1, 2, 3], [0, 1, 3])
        assert results["n_samples"] == 3
        assert "held-out" in done.stdout
        assert "6 questions; the first is asked 'Colour of the " in done.stdout
        again = script("run_multi_hop.py", *arguments, "--target-layers", "0-1,3", *output)
        assert again.returncode == 0
        assert read(tmp_path / "out.json")["results"] == results

    @pytest.mark.parametrize(
        "question",
        [
            ["--example-id", 0],
            ["--hop2", "Colour of", "--hop1", "the DOG"],
            ["--hop2", "A", "--hop1", "B", "--answer", "q"],
            ["--hop2", "{}的货币", "--hop1", "首都是东京的国家", "--cue", "是"],
        ],
    )
    def test_one_question(self, question, model_folder, tmp_path, output):
        arguments = ["--model", model_folder, "--layer-range", "0-1", "--max-new-tokens", 3, "--cot-new-tokens", 3]
        done = script("run_multi_hop_interactive.py", *question, *arguments, *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        results = read(tmp_path / "out.json")["results"]
        assert np.array(results["methods"]["patchscope"]["solved"]).shape == (2, 4)
        assert "vanilla" in done.stdout


@pytest.fixture(scope="module")
def relation_file(model_folder, tmp_path_factory):
    """Of which the tiny model "knows" whatever it says."""
    path = tmp_path_factory.mktemp("relations") / "own.json"
    relation = asdict(make_relation(load_model(str(model_folder)), "colour"))
    samples = [{name: sample[name] for name in ("subject", "object", "aliases")} for sample in relation["samples"]]
    fields = {name: relation[name] for name in ("name", "prompt", "kind")}
    path.write_text(json.dumps(fields | {"samples": samples}))
    return path


class TestAttributes:
    def test_ones_own_relations(self, relation_file, model_folder, tmp_path, output):
        """A relation file, and beside it a table with the columns of the paper's published samples."""
        relation = read(relation_file)
        table = tmp_path / "table.tsv"
        prompt = relation["prompt"].replace("{}", "x")
        rows = [
            (one["subject"], one["object"], f"So, {one['subject']} {word}", "3", prompt, "-1")
            for one in relation["samples"]
            for word in ("then", "now")
        ]
        head = ("subject", "object", "prompt_source", "position_source", "prompt_target", "position_target")
        table.write_text("\n".join("\t".join(row) for row in [head, *rows]))
        arguments = ["--model", model_folder, "--layers", "0-1,3", "--target-layers", "1-2", "--examples", 4]
        command = ["run_attributes.py", relation_file, table, *arguments, "--prompts", 3, "--samples", 10, *output]
        done = script(*command)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        results = read(tmp_path / "out.json")["results"]
        assert set(results["tasks"]) == {"colour", "table"}
        assert (results["layers"], results["target_layers"]) == ([0, 1, 3], [1, 2])
        assert [results["tasks"][name]["n_samples"] for name in ("colour", "table")] == [30, 20]
        assert "position_source and position_target are not read" in done.stdout
        assert "colour" in done.stdout
        again = script(*command)
        assert again.returncode == 0
        assert read(tmp_path / "out.json")["results"] == results

    def test_subjects_from_ones_own_texts(self, relation_file, model_folder, tmp_path, output):
        subjects = [one["subject"] for one in read(relation_file)["samples"]]
        texts = tmp_path / "texts.txt"
        texts.write_text("\n".join(f"line {number} is about the {one}" for number in range(9) for one in subjects))
        arguments = ["--model", model_folder, "--dataset", texts, "--methods", "patchscope", "--layers", "1"]
        done = script("run_attributes.py", relation_file, *arguments, *output)
        assert done.returncode == 0, done.stderr
        document = read(tmp_path / "out.json")
        assert document["environment"]["dataset"]["name"] == str(texts)
        (task,) = document["results"]["tasks"].values()
        assert all(sample["source_prompt"].count(sample["subject"]) == 1 for sample in task["samples"])

    def test_the_attribute_lens(self, relation_file, model_folder, tmp_path, output):
        arguments = ["--model", model_folder, "--examples", 4, "--attribute-lens", "A DOG and a $5 CAT"]
        done = script("run_attributes.py", relation_file, *arguments, *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        assert np.shape(read(tmp_path / "out.json")["results"]["top"])[0] == 4

    @pytest.mark.parametrize("more", [[], ["--answer", "q", "--source-text", "A red dog and a BIRD"]])
    def test_one_subject(self, relation_file, model_folder, tmp_path, output, more):
        arguments = ["red dog", "--relation", relation_file, "--model", model_folder, "--layer-range", "0-1"]
        done = script("run_attributes_interactive.py", *arguments, *more, *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        results = read(tmp_path / "out.json")["results"]
        assert np.array(results["methods"]["patchscope"]["solved"]).shape == (2, 4)
        assert "in clear" in done.stdout


@pytest.fixture(scope="module")
def fact_file(other_folder, tmp_path_factory):
    """Facts that the tiny model "knows", with the other fields of published ones."""
    path = tmp_path_factory.mktemp("facts") / "known.json"
    facts = make_facts(load_model(str(other_folder)))
    rows = [
        {"known_id": number, "prompt": fact.prompt, "subject": fact.subject, "attribute": fact.attribute}
        for number, fact in enumerate(facts)
    ]
    path.write_text(json.dumps(rows))
    return path


class TestCausalTracing:
    def test_ones_own_facts(self, fact_file, other_folder, tmp_path, output):
        arguments = [fact_file, "--model", other_folder, "--samples", 4, "--original-samples", 2, "--noise", 2]
        command = ["run_causal_tracing.py", *arguments, "--noise-samples", 3, "--window", 2, *output]
        done = script(*command)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        results = document["results"]
        assert (document["config"]["noise"], document["config"]["window"]) == (2, 2)
        for method, n_samples in (("original", 2), ("patchscope", 4)):
            measures = results["methods"][method]
            assert measures["n_samples"] == n_samples
            assert set(measures["total_effect"]) == {"mean", "ci95"}
            assert len(measures["indirect_effect"]["mlp_out"]["last_subject"]["mean"]) == 3
        assert results["largest_probability_difference"] < 1e-4
        assert "last_subject" in done.stdout
        assert "times faster" in done.stdout
        again = script(*command)
        assert again.returncode == 0
        assert read(tmp_path / "out.json")["results"] == results

    def test_a_table_and_the_original_form_alone(self, fact_file, other_folder, tmp_path, output):
        table = tmp_path / "facts.csv"
        names = ("prompt", "subject", "attribute")
        lines = [",".join(f'"{fact[name]}"' for name in names) for fact in read(fact_file)]
        table.write_text("\n".join([",".join(names), *lines]))
        arguments = ["--model", other_folder, "--samples", 3, "--methods", "original", "--layers", "0,2"]
        done = script("run_causal_tracing.py", table, *arguments, *output)
        assert done.returncode == 0, done.stderr
        results = read(tmp_path / "out.json")["results"]
        assert results["layers"] == [0, 2]
        assert list(results["methods"]) == ["original"]
        assert len(results["facts"]) == 3


class TestAttentionKnockout:
    def test_ones_own_facts(self, fact_file, other_folder, tmp_path, output):
        command = ["run_attention_knockout.py", fact_file, "--model", other_folder, "--samples", 3, *output]
        done = script(*command)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "attention_knockout"
        results = document["results"]
        assert (results["layers"], results["window"], results["n_samples"]) == ([0, 1, 2], 1, 3)
        for method in ("original", "patchscope"):
            for keys in ("subject", "rest", "last"):
                assert np.shape(results["methods"][method]["relative_change"][keys]["ci95"]) == (3, 2)
        assert "windows of 1 layers" in done.stdout
        again = script(*command)
        assert again.returncode == 0
        assert read(tmp_path / "out.json")["results"] == results


class TestEntityResolution:
    def test_ones_own_facts(self, fact_file, other_folder, tmp_path, output):
        arguments = ["--model", other_folder, "--samples", 3, "--noise-samples", 2, "--max-new-tokens", 4, *output]
        command = ["run_entity_resolution.py", fact_file, *arguments]
        done = script(*command)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        document = read(tmp_path / "out.json")
        assert document["experiment"] == "entity_resolution"
        results = document["results"]
        assert (results["layers"], results["window"], results["n_samples"]) == ([0, 1, 2], 1, 3)
        # Each prompt has one or two subjects only.
        assert "no LRE: no prompt has more than 8 subjects that the model knows" in done.stdout
        for measure in ("description", "tracing_subject", "tracing_last", "knockout"):
            assert np.shape(results["measures"][measure]["ci95"]) == (3, 2)
            assert measure in done.stdout
        again = script(*command)
        assert again.returncode == 0
        assert read(tmp_path / "out.json")["results"] == results

    def test_some_methods_at_one_layer(self, fact_file, other_folder, tmp_path, output):
        arguments = ["--model", other_folder, "--methods", "tracing,knockout", "--layers", "1", "--noise-samples", 2]
        done = script("run_entity_resolution.py", fact_file, *arguments, *output)
        assert done.returncode == 0, done.stderr
        assert list(read(tmp_path / "out.json")["results"]["measures"]) == [
            "tracing_subject",
            "tracing_last",
            "knockout",
        ]
        assert "no LRE" not in done.stdout


@pytest.fixture(scope="module")
def word_folder(tmp_path_factory):
    """A model that says words."""
    folder = tmp_path_factory.mktemp("tiny-words")
    config = CONFIGS["llama"]()
    config.vocab_size = 1024
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def name_files(word_folder, tmp_path_factory):
    """Names that the tiny model "knows", and templates."""
    folder = tmp_path_factory.mktemp("names")
    entities = [
        {"entity": one.name, "references": one.references, "keywords": one.keywords}
        for one in make_names(load_model(str(word_folder)), 6)
    ]
    (folder / "names.json").write_text(json.dumps(entities))
    (folder / "templates.json").write_text(json.dumps([asdict(template) for template in TEMPLATES]))
    return folder


class TestLayerGrid:
    @pytest.fixture
    def arguments(self, name_files, word_folder, output, tmp_path):
        files = ["--entities", name_files / "names.json", "--templates", name_files / "templates.json"]
        history = ["--history-file", tmp_path / "runs.jsonl"]
        few = ["--template", "identity", "--max-new-tokens", 12, "--samples", 4]
        return ["--model", word_folder, *files, *history, *few, *output]

    def test_every_mode_and_its_history(self, arguments, tmp_path):
        modes = {
            "quick": [],
            "targeted": ["--source-prompt", "We saw a RED DOG", "--name", "RED DOG", "--keywords", "a,b"],
            "templates": ["--others", 3],
            "patchscope": ["--template-type", "minimal"],
            "multi": ["--shares", "0,1"],
            "comprehensive": ["--full-grid"],
        }
        for number, (mode, more) in enumerate(modes.items(), start=1):
            done = script("run_layer_grid.py", "--mode", mode, *more, *arguments)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "out.png").read_bytes().startswith(PNG)
            document = read(tmp_path / "out.json")
            assert (document["experiment"], document["results"]["mode"]) == ("layer_grid", mode)
            assert "hotspots (ℓ, ℓ*)" in done.stdout
            assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == number
            (tmp_path / "out.png").unlink()
            # Only the quick look ends with a verdict.
            assert (mode == "quick") == ("It works: " in done.stdout or "It does not work" in done.stdout)
        assert "left out: user, because the tokenizer of" in done.stdout

        (tmp_path / "runs.jsonl").open("a").write('{"time": "2026')
        listed = script("run_layer_grid.py", "--history", *arguments)
        assert listed.returncode == 0, listed.stderr
        assert "line 7 is torn" in listed.stdout
        assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == [*"12345", *"666"]
        assert not (tmp_path / "out.png").exists()

        compared = script("run_layer_grid.py", "--compare", 5, -1, *arguments)
        assert compared.returncode == 0, compared.stderr
        assert (tmp_path / "out_compare.png").read_bytes().startswith(PNG)
        assert "over 4 names of both" in compared.stdout
        assert "full_grid: False and True" in compared.stdout

    def test_again_from_the_chunks(self, arguments, tmp_path):
        first, again = (script("run_layer_grid.py", *arguments) for _ in range(2))
        assert (first.returncode, again.returncode) == (0, 0), first.stderr
        history = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
        assert history[0]["summary"] == history[1]["summary"]
        assert history[0]["file"] == "out.json"


class TestFig1:
    @pytest.mark.parametrize("mode", ["generate", "top_k", "both"])
    def test_each_mode(self, model_folder, tmp_path, mode):
        output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
        source = ["--source-text", "a $5 big\tdog", "--target-word", "big", "--target-layer", "last"]
        done = script("demo_fig1.py", "--model", model_folder, "--mode", mode, *source, *output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(PNG)
        assert read(tmp_path / "out.json")["results"]["target_layers"] == [3, 3, 3, 3]


def test_bench(model_folder, texts, tmp_path):
    output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
    done = script(
        "bench_engine.py", "--model", model_folder, "--dataset", texts, "--samples", 4, "--max-new-tokens", 3, *output
    )
    assert done.returncode == 0, done.stderr
    tasks = read(tmp_path / "out.json")["results"]["tasks"]
    sweep, generation, grid, questions, attributes, tracing, jacobian = tasks
    assert sweep["largest_logit_difference"] < 1e-3
    assert sweep["same_argmax"] == generation["same_generations"] == grid["same_generations"] == 1.0
    assert grid["n_rows"] == 16
    assert questions["same_verdicts"] == attributes["same_generations"] == 1.0
    assert tracing["largest_probability_difference"] < 1e-4
    assert jacobian["largest_relative_difference"] < 1e-4
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_a_wrong_option_as_the_user_sees_it():
    done = in_a_process("run_fig2.py", "--layers", "0-50", "--samples", 2)
    assert done.returncode == 1
    assert "error: layer 30 does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run_fig2.py", ["--model", "lama-3-8b"], "did you mean 'llama-3-8b'"),
        ("run_fig2.py", ["--dataset", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        ("run_fig2.py", ["--layers", "5-2"], "expected layers like 0,4,8 or 0-15 or all"),
        ("run_fig2.py", ["--methods", "magic"], "expected some of logit_lens,tuned_lens,"),
        ("run_fig2.py", ["--tuned-lens", "no.safetensors"], "there is no file no.safetensors"),
        ("run_entity.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_entity_interactive.py", [""], "the name is empty"),
        ("run_causal_tracing.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_causal_tracing.py", ["facts.txt"], " or .csv or .tsv or .parquet file of facts"),
        ("run_causal_tracing.py", ["--noise", "-1"], "expected a number of at least 0"),
        ("run_causal_tracing.py", ["--methods", "guess"], "expected some of original,patchscope"),
        ("run_entity_resolution.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_entity_resolution.py", ["--examples", "1"], "expected a whole number of at least 2"),
        ("run_layer_grid.py", ["--entities", "nowhere.json"], "there is no file nowhere.json"),
        ("run_layer_grid.py", ["--mode", "patchscope"], "give both or neither"),
        ("run_layer_grid.py", ["--source-prompt", "Nobody at all"], "no name of the file stands in the source prompt"),
        ("run_layer_grid.py", ["--source-prompt", "Ada", "--keywords", "math"], "has 1 keywords"),
        ("run_layer_grid.py", ["--template", "magic"], "there is no template 'magic'"),
        ("run_layer_grid.py", ["--shares", "0,2"], "expected shares of the depth from 0 to 1"),
        ("run_layer_grid.py", ["--history", "--history-file", "no.jsonl"], "there is no history no.jsonl"),
        ("run_layer_grid.py", ["--compare", "1", "2", "--history-file", "no.jsonl"], "there is no history no.jsonl"),
        ("run_multi_hop.py", ["nowhere.json"], "there is no file nowhere.json"),
        ("run_multi_hop.py", ["--methods", "guess"], "expected some of vanilla,cot,patchscope,"),
        ("run_multi_hop_interactive.py", ["--hop1", "the DOG"], "needs both --hop2 and --hop1"),
        ("run_multi_hop_interactive.py", ["--example-id", "99999"], "no question with the id 99999"),
        ("run_multi_hop_interactive.py", ["--hop2", "A", "--hop1", "the B", "--answer", "b"], "stands in the question"),
        ("run_cross_model.py", ["--source-model", "gpt2"], "Give --target-model"),
        ("run_cross_model.py", ["--target-model", EMBEDDED_MODEL, "--layers", "40"], "layer 40 does not exist"),
        ("run_cross_model.py", ["--target-model", "no-such"], "no model is called 'no-such'"),
        ("run_lenses.py", ["--soft-prompt", "no.pt"], "expected the name of a .safetensors file"),
        ("train_lens.py", ["--output", "a.safetensors", "--ridge", "-1"], "expected a number of at least 0"),
        (
            "train_lens.py",
            ["--output", "a.safetensors", "--layers", "1"],
            "--layers is for tuned_lens_kl and learned_prompt",
        ),
        ("train_lens.py", ["--output", "a.safetensors", "--dataset", "x.txt"], "there is no file x.txt"),
        ("run_fig2.py", ["--seed", "-1"], "at least 0"),
        ("run_fig2.py", ["--output-plot", "fig.pdf"], "expected the name of a .png file"),
        ("demo_fig1.py", ["--top-k", "100000"], "the model has 49152 tokens"),
        ("run_fig2.py", ["--samples", "0"], "at least 1"),
        ("run_fig2.py", ["--device", "gpu"], "device 'gpu' is not on this machine"),
        ("run_fig2.py", ["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (
            "run_fig2.py",
            ["--output-json", "/proc/no/out.json", "--samples", "2", "--methods", "logit_lens"],
            "cannot write",
        ),
        ("demo_fig1.py", ["--target-word", "CFO"], "'CFO' is not in the text"),
        ("demo_fig1.py", ["--target-layer", "99"], "layer 99 does not exist"),
        ("demo_fig1.py", ["--target-layer", "first"], "expected same, embedding, last or a number"),
        ("demo_fig1.py", ["--layers", "0-50"], "layer 30 does not exist"),
    ],
)
def test_a_wrong_option_is_one_line(name, arguments, message):
    done = script(name, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
