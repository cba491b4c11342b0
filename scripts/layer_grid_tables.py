"""The tables of layer grids: one run, all runs of the history, and two side by side."""

from pathlib import Path

from patchscopes.errors import PatchscopesError
from patchscopes.model.layer_names import name_layer
from patchscopes.plots.text import show_whitespace


def print_table(document: dict) -> None:
    """The success of each grid beside its controls, by template where there are several, and what stands out."""
    results = document["results"]
    if results["source"] is not None:
        source = results["source"]
        print(
            f"{source['name']!r} in {source['source_prompt']!r}; known by "
            f"{show_whitespace(', '.join(source['keywords']))}"
        )
    for template in results["left_out"]:
        print(show_whitespace(f"left out: {template['template']}, because {template['reason']}"))
    print(f"{'':>38} {'pairs':>8} {'strong':>18} {'partial':>18} {'other state':>18} {'unpatched':>10}")
    for grid in results["grids"]:
        label = f"{grid['stage']}, {len(grid['names'])} names, {len(grid['templates'])} templates"
        pairs = f"{len(grid['layers'])}×{len(grid['target_layers'])}"
        shares = (grid["success"]["strong"], grid["success"]["partial"], grid["other_state"])
        cells = " ".join(f"{show_share(share):>18}" for share in shares)
        print(f"{label:>38} {pairs:>8} {cells} {grid['unpatched']['mean']:10.2f}")
        if len(grid["templates"]) > 1:
            print_templates(grid)
    for grid in results["grids"]:
        print(f"{grid['stage']}: {describe_hotspots(grid)}{describe_consistency(grid)}")
        print_regions(grid)
    if results["mode"] == "quick":
        print(judge(results["grids"][0]))


def judge(grid: dict) -> str:
    """Whether the set-up works at all, from four pairs."""
    classes = [number for row in grid["classes"][0][0] for number in row]
    n_known = sum(number > 0 for number in classes)
    if n_known == 0:
        return "It does not work at these pairs: no keyword was said. Try --mode targeted, another --template or name."
    beware = ""
    if grid["unpatched_classes"][0][0] > 0:
        beware = ", but unpatched the template says a keyword too: take another --template or other --keywords"
    return f"It works: keywords were said at {n_known} of {len(classes)} pairs{beware}."


def print_templates(grid: dict) -> None:
    """The success of each template beside its controls."""
    for template, measured in zip(grid["templates"], grid["by_template"], strict=True):
        label = f"{template['family']}: {template['name']}"
        cells = (show_share(measured["strong"]), "", show_share(measured["other_state"]))
        print(f"{label:>38} {'':>8} {' '.join(f'{cell:>18}' for cell in cells)} {measured['unpatched']:10.2f}")


def show_share(share: dict | None) -> str:
    """A mean and the ends of its interval, where it has one."""
    if share is None:
        return "-"
    if share["ci95"] is None:
        return f"{share['mean']:.2f}"
    low, high = share["ci95"]
    return f"{share['mean']:.2f} [{low:.2f}, {high:.2f}]"


def describe_hotspots(grid: dict) -> str:
    """The pairs and layers that stand out."""
    hotspots = grid["hotspots"]
    pairs = sorted(hotspots["pairs"], key=lambda pair: -pair["strong"])
    shown = ", ".join(f"({name_layer(pair['layer'])}, {name_layer(pair['target_layer'])})" for pair in pairs[:8])
    by_layer, by_target_layer = (
        ", ".join(name_layer(place[key]) for place in hotspots[f"{key}s"]) or "none"
        for key in ("layer", "target_layer")
    )
    more = f" and {len(pairs) - 8} more" if len(pairs) > 8 else ""
    return f"hotspots (ℓ, ℓ*): {shown or 'none'}{more}; ℓ: {by_layer}; ℓ*: {by_target_layer}"


def describe_consistency(grid: dict) -> str:
    """How alike the grids of names, or of templates, are."""
    consistency = grid["consistency"]
    if consistency is None:
        return ""
    mean = consistency["mean_rank_correlation"]
    return (
        f"; rank correlation {'-' if mean is None else f'{mean:.2f}'}; {len(consistency['pairs'])} pairs are strong "
        f"for at least {consistency['at_least']} of {len(consistency['labels'])}"
    )


def print_regions(grid: dict) -> None:
    """What others claim of layers, as it comes out."""
    for name, region in grid["regions"].items():
        if region is not None:
            inside, outside, difference = (show_share(region[of]) for of in ("inside", "outside", "difference"))
            print(f"  {name}: strong {inside}, elsewhere {outside}, difference {difference}")


def print_history(path: Path) -> None:
    """All runs."""
    # Imported here: reading a history takes NumPy, which the options need not wait for.
    from patchscopes.experiments.layer_grid_history import load_history, tabulate_history

    history = load_history(path)
    report_torn(path, history.torn)
    rows = [{heading: show_whitespace(cell) for heading, cell in row.items()} for row in tabulate_history(history)]
    if not rows:
        raise PatchscopesError(f"{path} has no runs; every run of a mode writes one")
    headings = list(rows[0])
    widths = {heading: max(len(heading), *(len(row[heading]) for row in rows)) for heading in headings}
    for row in [dict(zip(headings, headings, strict=True)), *rows]:
        print("  ".join(f"{row[heading]:<{widths[heading]}}" for heading in headings).rstrip())


def report_torn(path: Path, torn: tuple[int, ...]) -> None:
    """Say which lines of the history cannot be read."""
    if torn:
        print(f"{path}: line {', '.join(map(str, torn))} is torn (a run was ended while it wrote it), and is left out")


def print_comparison(compared: dict) -> None:
    """What was set differently, and the success of each grid of both."""
    for name, run_ in zip("AB", compared["runs"], strict=True):
        print(show_whitespace(f"{name}: {run_['model']}, {run_['summary']['mode']}, {run_['time']}, {run_['file']}"))
    for option, (first, second) in compared["differences"].items():
        print(f"  {option}: {show_whitespace(str(first))} and {show_whitespace(str(second))}")
    print(f"{'grid':>16} {'':>12} {'A':>18} {'B':>18}")
    for grid in compared["grids"]:
        first, second = grid["of"]
        rows = {
            "strong": [of["success"]["strong"] for of in (first, second)],
            "partial": [of["success"]["partial"] for of in (first, second)],
            "other state": [of["other_state"] for of in (first, second)],
            "unpatched": [of["unpatched"] for of in (first, second)],
        }
        for label, shares in rows.items():
            print(f"{grid['stage']:>16} {label:>12} {' '.join(f'{show_share(share):>18}' for share in shares)}")
        if grid["difference"] is not None:
            difference = show_share(grid["difference"])
            print(f"{grid['stage']:>16} {'B - A':>12} {difference:>18}  over {len(grid['names'])} names of both")
