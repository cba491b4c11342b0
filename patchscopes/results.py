"""Result files: one JSON shape for every experiment, written atomically, and chunks that a killed run leaves behind."""

import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import psutil
from filelock import FileLock, Timeout

import patchscopes
from patchscopes.errors import PatchscopesError, PatchscopesWarning

SCHEMA_VERSION = 1

LINE_LENGTH = 120

ANOTHER_PATH = "make room there or choose another path"

# How often a file is renamed at most, and the seconds in between.
RENAMINGS, RENAMING_PAUSE = 10, 0.1
# Seconds after which a process that waits for another one says so.
SILENT_WAIT = 1.0

Json: TypeAlias = Any


def write_json(path: Path, content: Json) -> None:
    """Write strict JSON (no NaN or infinity) so that the file is at any moment the old one or the new one, whole."""
    # Through JSON and back, so that only lists and dicts with texts as keys are left to format.
    write_atomically(path, (format_json(json.loads(encode_on_one_line(content))) + "\n").encode())


def format_json(content: Json, indent: int = 0) -> str:
    """JSON in which a list of numbers stands on one line, and so does whatever else fits into one."""
    line = encode_on_one_line(content)
    if not isinstance(content, list | dict) or indent + len(line) <= LINE_LENGTH:
        return line
    if isinstance(content, list):
        if all(isinstance(item, int | float | None) for item in content):
            return line
        items = [format_json(item, indent + 1) for item in content]
    else:
        items = [f"{encode_on_one_line(key)}: {format_json(value, indent + 1)}" for key, value in content.items()]
    opening, closing = line[0], line[-1]
    margin = "\n" + " " * indent
    return opening + ",".join(f"{margin} {item}" for item in items) + margin + closing


def encode_on_one_line(content: Json) -> str:
    """Strict JSON without line breaks."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


@contextmanager
def explain_writing(path: Path, advice: str = ANOTHER_PATH) -> Iterator[None]:
    """Tell in one sentence why a path cannot be written to, and what to do about it.

    Raises:
        PatchscopesError: what is done inside the `with` block ends in an error of the system.
    """
    try:
        yield
    except OSError as error:
        # Of a folder that is to be made: "File exists" would be no help.
        reason = f"{error.filename} is no folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise PatchscopesError(f"cannot write {path} ({reason}); {advice}") from error


def check_writable(path: Path, advice: str = ANOTHER_PATH) -> None:
    """Refuse a path that no file can be written to, before long work that ends in one.

    Raises:
        PatchscopesError: there is a folder of that name, or the folder of the file cannot be made or written to.
    """
    with explain_writing(path, advice):
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name in the same folder, then rename it.

    Of several processes that write it at the same time, one is the last, and leaves it whole.

    Raises:
        PatchscopesError: the folder cannot be written to, or the disk is full; a file that was there is as it was.
    """
    with explain_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        unfinished = Path(name)
        try:
            # Closed before it is renamed, which Windows asks for.
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.chmod(0o644)
            _rename(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def _rename(unfinished: Path, path: Path) -> None:
    """Rename a file over another one, as soon as nobody has that open: Windows refuses it until then."""
    for _ in range(RENAMINGS - 1):
        with suppress(PermissionError):
            unfinished.replace(path)
            return
        time.sleep(RENAMING_PAUSE)
    unfinished.replace(path)


@contextmanager
def hold_lock(path: Path, advice: str = ANOTHER_PATH) -> Iterator[None]:
    """Let one process at a time do what is inside the `with` block, of all that name the same path; others wait.

    The lock is a file beside it. It is let go of when its process ends, in whichever way. A process that waits says so.

    Raises:
        PatchscopesError: the folder cannot be written to.
    """
    with explain_writing(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire(timeout=SILENT_WAIT)
        except Timeout:
            warnings.warn(
                f"another process is at work on {path.name}; waiting for it to end", PatchscopesWarning, stacklevel=3
            )
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of several processes this one is, that measure the same chunks together.

    Attributes:
        index: from 0 on.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    def put_first(self, names: Sequence[str]) -> list[str]:
        """All names: those of this share first, then the others from the end, where their own processes come last."""
        own = list(names[self.index :: self.count])
        return own + [name for name in reversed(names) if name not in set(own)]


ALONE = Share()


@dataclass(frozen=True)
class ChunkStore:
    """Finished parts of one run, kept beside its output: `fig2.json` has them in `fig2.chunks/<configuration>/`.

    The folder's name is a hash of the options, of the environment (model, data, versions, ...) and of the library's
    own code, so a run never goes on from chunks that another one would have made differently. Several processes may
    share it at the same time: each finds what the others have finished, and no two of them are at the same chunk.
    """

    folder: Path
    share: Share = ALONE

    @classmethod
    def beside(cls, output: Path, config: Json, environment: Json, share: Share = ALONE) -> "ChunkStore":
        """The store of the run that has this output, options and environment.

        Any git commit, number of threads and number of the device will do: processes that share their chunks differ in
        them.
        """
        device = str(environment.get("device")).partition(":")[0]
        described = {
            "config": config,
            "environment": environment | {"git_commit": None, "threads": None, "device": device},
        }
        key = json.dumps(described, sort_keys=True, allow_nan=False)
        return cls(output.with_suffix(".chunks") / hashlib.sha256(key.encode()).hexdigest()[:16], share)

    def at(self, step: str) -> "ChunkStore":
        """The store of one step of the run."""
        return ChunkStore(self.folder / step, self.share)

    def load(self, name: str) -> Json | None:
        """The content of a finished chunk, or None if there is none, or none that can be read any more."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def save(self, name: str, content: Json) -> None:
        """Keep a finished chunk."""
        write_json(self.folder / f"{name}.json", content)

    def clear(self) -> None:
        """Forget the chunks of this configuration.

        Raises:
            PatchscopesError: they cannot be removed.
        """
        # Neither the folder nor what another run is just writing into it.
        for path in self.folder.rglob("*.json"):
            with explain_writing(path):
                path.unlink(missing_ok=True)


def code_sha256(modules: Sequence[str] | None = None) -> str:
    """A hash over the source files of the installed package, or over those of some of its modules."""
    folder = Path(patchscopes.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if modules is None else [folder / f"{name}.py" for name in modules]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def peak_memory_gib() -> float:
    """The largest resident memory of this process so far."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return memory.peak_wset / 2**30
    # Windows has no such module, and it alone knows the peak where psutil does not.
    import resource

    # macOS counts in bytes, Linux in kilobytes.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def build_document(experiment: str, config: Json, environment: Json, results: Json, timing: Json) -> dict[str, Json]:
    """The frame of every result file; the memory that the run took joins its `timing`."""
    return {
        "experiment": experiment,
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "environment": environment,
        "results": results,
        "timing": timing | {"peak_memory_gib": peak_memory_gib()},
    }
