"""The README's own code runs and says what it should."""

import re

from conftest import ROOT


def test_the_notebook_example(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("0  -> CEO")
    assert len(printed.split("\n10 ")) == 2


def test_every_file_it_shows_is_there():
    for path in re.findall(r"\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).is_file()
