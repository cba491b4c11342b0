"""Keeping freed memory: fewer page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from patchscopes.engine.memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from patchscopes.engine.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(30):
    if turn == 10:  # memory has settled
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # 40 MiB: more than glibc keeps of itself.
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    ran = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_the_next_tensor_takes_the_pages_of_the_last():
    assert faults("keep") < faults("leave") / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
