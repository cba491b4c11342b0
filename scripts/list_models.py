"""Print the models that have an alias: size, memory of the weights, whether the hub asks for a login, and pairs."""

import argparse

from patchscopes.model.registry import EXPLAINED_BY, MODELS


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{'alias':<22} {'hub id':<36} {'layers':>6} {'parameters':>11} {'float32':>9} {'bfloat16':>9}  gated")
    for info in MODELS.values():
        print(
            f"{info.alias:<22} {info.hub_id:<36} {info.n_layers:>6} {info.n_parameters / 1e6:>9,.0f} M "
            f"{info.memory_gib(4):>5.1f} GiB {info.memory_gib(2):>5.1f} GiB  "
            f"{'yes' if info.gated else 'no'}"
        )
    print("explained by, in run_cross_model.py:", ", ".join(f"{one} → {other}" for one, other in EXPLAINED_BY.items()))


if __name__ == "__main__":
    main()
