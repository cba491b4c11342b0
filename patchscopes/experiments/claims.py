"""Who is at work on what, of several processes that share a folder: a claim is a file that its process keeps touching.

It needs no more of the folder than that a file can be made by one of several processes alone, so that it holds between
the nodes of a cluster too. A claim expires when its process has not touched it for a while; on the machine of that
process, as soon as it is gone. To take over a claim that has expired is to make the next one, which one alone can.
"""

import json
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from patchscopes.results import explain_writing

# Seconds after which a claim is touched again, and after which one that was not touched has expired: a node of a
# cluster may see what another one did to a file only a minute later.
HEARTBEAT = 10.0
LIFETIME = 120.0


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process, and no other one that lives, has the claim of this name while the `with` block lasts.

    Of the same process, it is had once at a time too.

    Raises:
        PatchscopesError: the folder cannot be written to.
    """
    with explain_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = _make_claim(path)
    if own is None:
        yield False
        return
    ended = threading.Event()
    heart = threading.Thread(target=_keep_alive, args=(own, ended), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        ended.set()
        heart.join()
        # Those that it took over first: what is left at any moment is still the newest.
        for number in range(_read_number(own) + 1):
            _name_claim(path, number).unlink(missing_ok=True)


def _make_claim(path: Path) -> Path | None:
    """The file of a new claim, or None if a process that lives has it."""
    made = sorted(map(_read_number, path.parent.glob(f"{path.name}.claim-*")))
    if made and not _has_expired(_name_claim(path, made[-1])):
        return None
    own = _name_claim(path, made[-1] + 1 if made else 0)
    try:
        descriptor = os.open(own, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(_describe_process(os.getpid()), file)
    return own


def _name_claim(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.claim-{number}")


def _read_number(claim: Path) -> int:
    return int(claim.name.rpartition("-")[2])


def _describe_process(pid: int) -> dict[str, str | int | float] | None:
    """What tells a process from all others, or None if there is no such process here."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
    # Two containers of one name count their processes apart.
    namespace = Path("/proc/self/ns/pid")
    machine = platform.node() + (f" {namespace.readlink()}" if namespace.exists() else "")
    return {"machine": machine, "pid": pid, "started": started}


def _has_expired(claim: Path) -> bool:
    """Whether the process that made the claim has ended, or was not heard of for `LIFETIME`."""
    try:
        touched = claim.stat().st_mtime
        made_by = json.loads(claim.read_text(encoding="utf-8") or "null")
    except FileNotFoundError:
        # It has just been let go of: whoever made it has finished, which is looked at first next time.
        return False
    except ValueError:
        made_by = None
    # By the clock of the folder, which is not always this machine's.
    with tempfile.TemporaryFile(dir=claim.parent) as now:
        age = os.fstat(now.fileno()).st_mtime - touched
    if made_by is None:
        # Its process was killed before it had written who it is, which is the first that it does.
        return age > HEARTBEAT
    here = _describe_process(os.getpid())
    if here is None or made_by["machine"] != here["machine"]:
        return age > LIFETIME
    return _describe_process(made_by["pid"]) != made_by


def _keep_alive(claim: Path, ended: threading.Event) -> None:
    """Touch a claim until it is let go of."""
    while not ended.wait(HEARTBEAT):
        # The folder may not answer for a while, or somebody may have removed it: what is measured is kept all the same.
        with suppress(OSError):
            os.utime(claim)
