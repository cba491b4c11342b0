"""The README's own code runs and says what it should."""

import json
import re

from conftest import ROOT

from patchscopes.model.registry import EMBEDDED_MODEL


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


def test_figures_are_those_of_the_present_scripts():
    """Every figure in the repository says which model and options made it."""
    names = ["fig1", "fig2", "future_lens", "lenses", "entity", "entity_diana", "cross_model", "bench"]
    for name in [*names, "multi_hop", "multi_hop_example"]:
        document = json.loads((ROOT / "figures" / f"{name}.json").read_text())
        model = document["config"]["source_model" if name == "cross_model" else "model"]
        assert model == document["environment"]["model"]["id"] == EMBEDDED_MODEL
        assert len(document["environment"]["git_commit"]) == 40
        assert f"figures/{name}.png" in (ROOT / "README.md").read_text()
