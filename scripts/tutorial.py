"""The tutorial: the five tasks of the paper in the browser, each method beside its Patchscope."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from options import add_device_options
from parsing import model_name, positive
from skeleton import run_script

from patchscopes.errors import PatchscopesError
from patchscopes.tutorial import models

# Nobody else on the network sees what is served there.
LOOPBACK = "127.0.0.1"


def main() -> None:
    options = build_parser().parse_args()
    if find_spec("streamlit") is None:
        raise PatchscopesError(
            "the tutorial needs Streamlit, which is not installed: run `make tutorial`, or pip install -c "
            'constraints.txt -e ".[tutorial]"'
        )
    models.serve(
        models.ServedModels(
            names=tuple(dict.fromkeys(options.model or models.list_installed())),
            device=options.device,
            dtype=options.dtype,
            quantization=options.quantization,
            trust_remote_code=options.trust_remote_code,
        )
    )
    from streamlit.web import cli

    from patchscopes.plots.style import BLUE, LIGHT_BLUE

    settings = {
        "server.address": options.host,
        "server.port": options.port,
        "server.headless": options.no_browser,
        # On its first run Streamlit would ask for an address and wait.
        "server.showEmailPrompt": False,
        # The library stays as it is while it is served; watching its files, and torch's, takes time.
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        # Set for both, so that the reader's own choice of light and dark holds.
        "theme.light.primaryColor": BLUE,
        "theme.dark.primaryColor": LIGHT_BLUE,
        # A reader never sees a traceback; the terminal has it.
        "client.showErrorDetails": "none",
    }
    cli.main(["run", str(Path(__file__).resolve()), *(f"--{name}={value}" for name, value in settings.items())])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    group = parser.add_argument_group("models")
    group.add_argument(
        "--model",
        type=model_name,
        action="append",
        help="one that readers may choose, named as for the other scripts; give the option again for more (default: "
        "the embedded model, and Gemma 3 270M where it is installed)",
    )
    add_device_options(group)
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default=LOOPBACK,
        metavar="ADDRESS",
        help="where it listens; 0.0.0.0 lets everybody on the network in (default: %(default)s, this machine alone)",
    )
    server.add_argument("--port", type=positive, default=8501, help="(default: %(default)s)")
    server.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def is_served() -> bool:
    """Whether Streamlit runs this file, as it does at every click."""
    if find_spec("streamlit") is None:
        return False
    from streamlit import runtime

    return runtime.exists()


if __name__ == "__main__":
    if is_served():
        from patchscopes.tutorial.app import draw

        draw()
    else:
        run_script(main)
