"""Result files: one JSON shape for every experiment, written atomically, and chunks that a killed run leaves behind."""

import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import patchscopes
from patchscopes.errors import PatchscopesError

SCHEMA_VERSION = 1

LINE_LENGTH = 120

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


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under another name in the same folder, then rename it.

    Raises:
        PatchscopesError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            unfinished = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                unfinished.chmod(0o644)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise PatchscopesError(f"cannot write {path} ({error.strerror}); choose another path") from error


@dataclass(frozen=True)
class ChunkStore:
    """Finished parts of one run, kept beside its output: `fig2.json` has them in `fig2.chunks/<configuration>/`.

    The folder's name is a hash of the options, of the environment (model, data, versions, ...) and of the library's
    own code, so a run never goes on from chunks that another one would have made differently.
    """

    folder: Path

    @classmethod
    def beside(cls, output: Path, config: Json, environment: Json) -> "ChunkStore":
        """The store of the run that has this output, options and environment (but any git commit)."""
        described = {"config": config, "environment": environment | {"git_commit": None}}
        key = json.dumps(described, sort_keys=True, allow_nan=False)
        return cls(output.with_suffix(".chunks") / hashlib.sha256(key.encode()).hexdigest()[:16])

    def load(self, name: str) -> Json | None:
        """The content of a finished chunk, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save(self, name: str, content: Json) -> None:
        """Keep a finished chunk."""
        write_json(self.folder / f"{name}.json", content)

    def clear(self) -> None:
        """Forget the chunks of this configuration."""
        shutil.rmtree(self.folder, ignore_errors=True)


def code_sha256(modules: Sequence[str] | None = None) -> str:
    """A hash over the source files of the installed package, or over those of some of its modules."""
    folder = Path(patchscopes.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if modules is None else [folder / f"{name}.py" for name in modules]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def peak_memory_gib() -> float:
    """The largest resident memory of this process so far."""
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
