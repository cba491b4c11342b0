"""Scripts in several processes: those that a launcher starts, and jobs with `--shard`."""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from multiprocessing import Queue, get_context
from multiprocessing.process import BaseProcess

import processes
import pytest
import test_chat_scripts
import test_scripts
import torch
from conftest import ROOT
from test_chat_scripts import COMMANDS, ONE_PROMPT_COMMANDS, build_command
from test_scripts import SCRIPTS, in_a_process, read, script

from patchscopes.errors import PatchscopesError
from patchscopes.results import ChunkStore, Share

chat_folder, files, texts = test_chat_scripts.chat_folder, test_chat_scripts.files, test_scripts.texts

TWO_MODELS = "run_cross_model.py"
# Those whose work is not in chunks: the first process does it all.
WHOLE = {"demo_fig1.py", "run_prompt_table.py", "run_entity_interactive.py"}
WHOLE |= {"run_attributes_interactive.py", "run_multi_hop_interactive.py"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSCOPES_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    """Whatever starts the tests, each begins outside of a launcher."""
    for pair in (*processes.LAUNCHERS, *processes.LOCAL):
        for variable in pair:
            monkeypatch.delenv(variable, raising=False)
    processes.choose_device.cache_clear()


@pytest.fixture
def small_chunks(monkeypatch):
    """So few members a chunk that there is something to share out."""
    for name, module in list(sys.modules.items()):
        if name.startswith("patchscopes.experiments."):
            for size in [size for size in vars(module) if size.startswith("CHUNK_")]:
                monkeypatch.setattr(module, size, 1)


@dataclass(frozen=True)
class Forked:
    """A script in a process that was forked from this one, which spares its imports."""

    process: BaseProcess
    said: Queue

    def finish(self) -> tuple[int, str, str]:
        """Its status, and what it printed, once it has ended of itself."""
        said = self.said.get(timeout=120)
        self.process.join(60)
        return said

    def end(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


def start(command: list, count: int = 1) -> list[Forked]:
    """A script in one process, or in all of a launch, which begin together."""
    context = get_context("fork")
    ready = context.Barrier(count)

    def run(index: int, said: Queue) -> None:
        torch.set_num_threads(1)
        if count > 1:
            os.environ |= {"RANK": str(index), "WORLD_SIZE": str(count)}
        ready.wait()
        done = script(*command)
        said.put((done.returncode, done.stdout, done.stderr))

    queues = [context.Queue() for _ in range(count)]
    forked = [context.Process(target=run, args=(index, said)) for index, said in enumerate(queues)]
    for process in forked:
        process.start()
    return [Forked(process, said) for process, said in zip(forked, queues, strict=True)]


@pytest.mark.parametrize("name", [*COMMANDS, *ONE_PROMPT_COMMANDS, TWO_MODELS])
def test_every_experiment_is_the_same_in_two_processes(name, files, chat_folder, tmp_path, small_chunks):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if name == TWO_MODELS:
        command = [name, "--dataset", files / "texts.txt", "--entities", files / "names.csv", "--samples", 4]
        command += ["--source-model", chat_folder, "--target-model", chat_folder, "--mapping", "identity"]
        command += ["--layers", "0,2", "--target-layers", "1", "--max-new-tokens", 2]
    else:
        command = [
            *build_command(name, (COMMANDS | ONE_PROMPT_COMMANDS)[name], files, tmp_path),
            "--model",
            chat_folder,
        ]
        # What the tiny model knows, it knows in a chat.
        command += ["--layers", "0,2", "--chat"]
    written = {}
    try:
        for run in ("one", "two"):
            output = ["--output-json", tmp_path / f"{run}.json", "--output-plot", tmp_path / f"{run}.png"]
            if run == "one":
                alone = script(*command, *output)
                assert alone.returncode == 0, alone.stderr
            else:
                said = [process.finish() for process in start([*command, *output], count=2)]
            written[run] = read(tmp_path / f"{run}.json")
    finally:
        torch.set_num_threads(threads)
    assert [status for status, _, _ in said] == [0, 0], said
    assert "wrote " in said[0][1]
    assert said[1][1:] == ("", "")
    assert written["two"]["results"] == written["one"]["results"]
    assert (tmp_path / "two.chunks").exists() == (name not in WHOLE)
    assert [path for path in tmp_path.rglob("*") if "claim" in path.name] == []


class TestFig2:
    """Under a launcher for real, and killed."""

    @pytest.fixture
    def command(self, model_folder, texts, tmp_path):
        output = ["--output-json", tmp_path / "out.json", "--output-plot", tmp_path / "out.png"]
        methods = ["--methods", "logit_lens,token_identity"]
        return ["run_fig2.py", "--model", model_folder, "--dataset", texts, "--num-samples", 400, *methods, *output]

    @pytest.fixture(scope="class")
    def alone(self, model_folder, texts, tmp_path_factory):
        folder = tmp_path_factory.mktemp("alone")
        output = ["--output-json", folder / "out.json", "--output-plot", folder / "out.png"]
        command = ["--model", model_folder, "--dataset", texts, "--num-samples", 400, *output]
        done = in_a_process("run_fig2.py", *command, "--methods", "logit_lens,token_identity")
        assert done.returncode == 0, done.stderr
        return read(folder / "out.json")["results"]

    def test_under_launchers_that_start_over(self, command, tmp_path, alone):
        """All wait until the first has forgotten what was finished (over gloo), whose results would show."""
        torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        accelerate = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
        before: dict = {}
        for launcher, fresh in ((torchrun, []), (accelerate, ["--fresh"])):
            script_and_options = [str(SCRIPTS / command[0]), *map(str, command[1:])]
            done = subprocess.run(
                [sys.executable, "-m", *launcher, *script_and_options, *fresh],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("wrote ") == 1
            assert read(tmp_path / "out.json")["results"] == alone
            chunks = sorted(tmp_path.glob("out.chunks/*/*"))
            assert [path.name for path in chunks] == [f"{number:05d}.json" for number in range(13)]
            written = {path: path.stat().st_mtime_ns for path in chunks}
            assert written.keys() == (before or written).keys()
            assert written.items().isdisjoint(before.items())
            before = written

    @pytest.fixture
    def slowly(self, monkeypatch):
        """Chunks take so long that there is time to kill who is at one."""
        save = ChunkStore.save
        monkeypatch.setattr(ChunkStore, "save", lambda *kept: (time.sleep(0.2), save(*kept)))

    def test_one_is_killed_and_the_other_goes_on(self, command, tmp_path, alone, slowly):
        main, other = start(command, count=2)
        wait_for_chunks(tmp_path, 2)
        other.end(signal.SIGKILL)
        other.process.join()
        status, printed, error = main.finish()
        assert status == 0, error
        assert printed.count("wrote ") == 1
        assert read(tmp_path / "out.json")["results"] == alone

    @pytest.mark.parametrize("launched", [True, False])
    def test_all_are_killed_and_another_number_finishes_the_rest(self, command, tmp_path, alone, slowly, launched):
        killed = start(command, count=2)
        wait_for_chunks(tmp_path, 2)
        for one in killed:
            one.end(signal.SIGKILL)
            one.process.join()
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.chunks/*/*.json")}
        assert len(kept) < 13
        assert list(tmp_path.glob("out.chunks/*/*.claim-0"))
        assert not (tmp_path / "out.json").exists()
        if launched:
            going_on = start(command, count=3)
        else:
            going_on = [job for number in (1, 2, 3) for job in start([*command, "--shard", f"{number}/3"])]
        said = [one.finish() for one in going_on]
        assert [status for status, _, _ in said] == [0, 0, 0], said
        assert read(tmp_path / "out.json")["results"] == alone
        chunks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.chunks/*/*")}
        assert kept.items() <= chunks.items()
        assert len(chunks) == 13

    def test_one_that_is_asked_to_end_lets_go_of_what_it_is_at(self, command, tmp_path, slowly):
        (one,) = start(command)
        wait_for_chunks(tmp_path, 1)
        one.end(signal.SIGTERM)
        status, _, error = one.finish()
        assert status == 1
        assert "interrupted: run the same command again" in error
        assert [path.name for path in tmp_path.glob("out.chunks/*/*") if path.suffix != ".json"] == []


def wait_for_chunks(folder, n: int) -> None:
    """Until so many chunks are finished."""
    until = time.monotonic() + 120
    while len(list(folder.glob("out.chunks/*/*.json"))) < n:
        assert time.monotonic() < until
        time.sleep(0.005)
    # Into the middle of the next one.
    time.sleep(0.1)


class TestShare:
    def test_of_launchers(self, monkeypatch):
        assert processes.read_launch() == Share()
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
        assert processes.read_launch() == Share(index=2, count=4)
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "8")
        assert processes.read_launch() == Share(index=1, count=8)
        assert not processes.is_main()

    def test_of_jobs(self, monkeypatch):
        shard = Share(index=1, count=3)
        assert processes.choose_share(Namespace(shard=shard, fresh=False)) == shard
        with pytest.raises(PatchscopesError, match="--fresh would throw away"):
            processes.choose_share(Namespace(shard=shard, fresh=True))
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(PatchscopesError, match="leave out --shard 2/3"):
            processes.choose_share(Namespace(shard=shard, fresh=False))

    @pytest.mark.parametrize("given", ["0/2", "3/2", "1", "a/b", "1/0", "1/2/3", ""])
    def test_that_is_none(self, given, tmp_path):
        done = script("run_fig2.py", "--shard", given, "--output-json", tmp_path / "a.json")
        assert done.returncode == 2
        assert "expected K/N, job K of N" in done.stderr

    def test_what_is_wrong_is_told_once(self, monkeypatch, tmp_path):
        output = ["--output-json", tmp_path / "a.json", "--output-plot", tmp_path / "a.png"]
        command = ["run_fig2.py", "--model", "no-such", *output]
        monkeypatch.setenv("WORLD_SIZE", "2")
        for index, told in ((0, True), (1, False)):
            monkeypatch.setenv("RANK", str(index))
            done = in_a_process(*command)
            assert done.returncode == 2
            assert ("no model is called" in done.stderr) == told


class TestDevice:
    @pytest.fixture
    def with_gpus(self, monkeypatch):
        def put(n_gpus: int, index: int, count: int) -> None:
            processes.choose_device.cache_clear()
            monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
            monkeypatch.setenv("LOCAL_RANK", str(index))
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

        return put

    def test_each_process_has_its_own(self, with_gpus):
        with_gpus(4, 2, 4)
        assert processes.choose_device(None) == "cuda:2"
        assert processes.choose_device("cuda") == "cuda:2"
        assert processes.choose_device("cuda:1") == "cuda:1"
        assert processes.choose_device("cpu") == "cpu"
        with_gpus(2, 3, 4)
        assert processes.choose_device(None) == "cuda:1"
        with_gpus(0, 1, 2)
        assert processes.choose_device(None) is None

    def test_a_spread_model_has_a_part_of_them(self, with_gpus, monkeypatch):
        with_gpus(8, 1, 4)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        # Asked for twice, as by a script with two models.
        assert [processes.choose_device("auto") for _ in range(2)] == ["auto", "auto"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,5"
        with_gpus(4, 1, 2)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,6,7")
        assert processes.choose_device("auto") == "auto"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,7"
        with_gpus(2, 0, 4)
        with pytest.raises(PatchscopesError, match="start at most 2 processes"):
            processes.choose_device("auto")


def test_every_script_is_here():
    assert {path.name for path in (ROOT / "scripts").glob("run_*.py")} <= {*COMMANDS, *ONE_PROMPT_COMMANDS, TWO_MODELS}
