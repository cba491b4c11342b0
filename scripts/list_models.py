"""Print the models that have an alias: size, memory of the weights, whether the hub asks for a login, and pairs."""

import argparse

from skeleton import run_script

from patchscopes.model.registry import EXPLAINED_BY, MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps or auto: say too which of the models fit, and in which form"
    )
    device = parser.parse_args().device
    judges = device is not None
    verdicts = judge_models(device) if judges else {}
    alias_width, hub_width = (max(map(len, names)) for names in (MODELS, [info.hub_id for info in MODELS.values()]))
    print(
        f"{'alias':<{alias_width}} {'hub id':<{hub_width}} {'layers':>6} {'parameters':>11} {'float32':>9} "
        f"{'bfloat16':>9}  gated{'  fits' if judges else ''}"
    )
    for info in MODELS.values():
        print(
            f"{info.alias:<{alias_width}} {info.hub_id:<{hub_width}} {info.n_layers:>6} "
            f"{info.n_parameters / 1e6:>9,.0f} M {info.memory_gib(4):>5.1f} GiB {info.memory_gib(2):>5.1f} GiB  "
            f"{'yes' if info.gated else 'no':<5}{'  ' + verdicts[info.alias] if judges else ''}".rstrip()
        )
    print("explained by, in run_cross_model.py:", ", ".join(f"{one} → {other}" for one, other in EXPLAINED_BY.items()))


def judge_models(device: str) -> dict[str, str]:
    """For each alias the forms in which its weights and a batch fit into the free memory of a device."""
    # Imported here: without a device nothing heavy is.
    from patchscopes.engine.room import judge_registry
    from patchscopes.model.devices import GIB, measure_free_memory_of, resolve_device

    place = resolve_device(device)
    print(f"{measure_free_memory_of(place) / GIB:.1f} GiB are free on {place}")
    return {alias: ", ".join(fitting) or "no" for alias, fitting in judge_registry(place).items()}


if __name__ == "__main__":
    run_script(main)
