"""The options that scripts share, and how they are parsed. Nothing heavy is imported: a mistake is told at once."""

import argparse
from pathlib import Path

from estimate import add_estimate_option
from parsing import (
    chat_side,
    file_name,
    layer_list,
    model_name,
    name_list,
    natural,
    positive,
    real_from_zero,
    share,
    target_layer,
)
from texts import add_text_options

from patchscopes.data.texts import PASSAGES
from patchscopes.errors import PatchscopesError
from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.prompts import ChatForm

FIGURES = Path(__file__).parent.parent / "figures"
DTYPES = ("float32", "bfloat16", "float16", "float64")
QUANTIZATIONS = ("8bit", "4bit")


def build_common_parser(
    description: str,
    output: str,
    *,
    methods: tuple[str, ...],
    default_methods: tuple[str, ...] | None = None,
    samples: int = 500,
    samples_are: str = "positions drawn from the texts",
    max_new_tokens: int = 8,
    dataset: str = PASSAGES,
    unused: tuple[str, ...] = (),
    models: tuple[str, ...] = ("model",),
) -> argparse.ArgumentParser:
    """A parser with the common options.

    Args:
        output: name of the output files without suffix; they go to `figures/`.
        methods: those that `--methods` may choose from.
        default_methods: those that it chooses unless given; all of them if None.
        samples, max_new_tokens, dataset: defaults.
        samples_are: what `--samples` counts.
        unused: common options that this script accepts and has no use for.
        models: the options that name a model.
    """
    ignored = f"Accepted and without effect here: {', '.join(f'--{name}' for name in unused)}." if unused else None
    parser = argparse.ArgumentParser(description=description, epilog=ignored, allow_abbrev=False)
    add_model_options(parser, models)
    data = add_data_options(parser, dataset, reads_texts="dataset" not in unused)
    data.add_argument(
        "--samples",
        "--num-samples",
        type=positive,
        default=samples,
        metavar="N",
        help=f"{samples_are} (default: %(default)s)",
    )
    run = parser.add_argument_group("run")
    add_layers_option(run)
    add_chat_options(run)
    run.add_argument(
        "--methods",
        type=name_list(methods),
        default=default_methods or methods,
        metavar="METHODS",
        help=f"some of {','.join(methods)} (default: {','.join(default_methods or ()) or 'all'})",
    )
    run.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="texts and rows at a time (default: by size); halved where memory runs out",
    )
    run.add_argument(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        metavar="N",
        help="length of generations (default: %(default)s)",
    )
    run.add_argument(
        "--shard",
        type=share,
        metavar="K/N",
        help="this is job K of N that write to one folder, as in an array of jobs: it begins with its share of the "
        "chunks, then takes what no other job is at; the last one sums up",
    )
    run.add_argument("--fresh", action="store_true", help="start over instead of going on from finished chunks")
    add_estimate_option(run)
    add_output_options(parser, output)
    return parser


def add_output_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Where the figure and its numbers go."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output-plot",
        type=file_name(".png"),
        default=FIGURES / f"{name}.png",
        metavar="PNG",
        help=f"the figure (default: figures/{name}.png)",
    )
    group.add_argument(
        "--output-json",
        type=file_name(".json"),
        default=FIGURES / f"{name}.json",
        metavar="JSON",
        help=f"all numbers; finished chunks are kept beside it (default: figures/{name}.json)",
    )


def add_model_options(parser: argparse.ArgumentParser, names: tuple[str, ...] = ("model",)) -> None:
    """Which model (or models), and where and how it runs."""
    model = parser.add_argument_group("model")
    for name in names:
        model.add_argument(
            f"--{name}",
            type=model_name,
            default=EMBEDDED_MODEL,
            help="alias (scripts/list_models.py prints them), hub id, local folder (of a model or an adapter) or .gguf "
            "file (default: %(default)s)",
        )
        model.add_argument(
            f"--{name.replace('model', 'revision')}", help=f"branch, tag or commit of --{name} on the hub"
        )
    add_device_options(model)


def add_device_options(group: argparse._ArgumentGroup) -> None:
    """Where and how a model runs, whichever it is."""
    group.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, or auto: all GPUs, then RAM and disk (default: the best)"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: float32 on a CPU, else bfloat16)",
    )
    group.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="keep the weights in so many bits (default: as they are)"
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with a model; read it first"
    )


def add_data_options(
    parser: argparse.ArgumentParser, default: str = PASSAGES, *, reads_texts: bool = True
) -> argparse._ArgumentGroup:
    """Which texts, and the seed.

    Args:
        reads_texts: whether the script has a use for them.
    """
    data = parser.add_argument_group("data")
    add_text_options(data, default, reads_texts=reads_texts)
    data.add_argument("--seed", type=natural, default=0, help="of all random draws (default: %(default)s)")
    return data


def add_layers_option(group: argparse._ArgumentGroup) -> None:
    """The source layers."""
    group.add_argument(
        "--layers",
        type=layer_list,
        default="all",
        metavar="LAYERS",
        help="source layers: 0,4,8 or 0-15 or all; embedding, as in embedding,0-15, is what enters block 0 (default: "
        "%(default)s)",
    )


def add_chat_options(group: argparse._ArgumentGroup) -> None:
    """Whether prompts are put into the chat template of an instruct model; `read_chat` reads what is given."""
    group.add_argument(
        "--chat",
        type=chat_side,
        nargs="?",
        const="both",
        metavar="PROMPTS",
        help="put S, T or both as the user's message into the model's chat template: source, target or both (the same "
        "as --chat alone); i and i* stay the same tokens, and after T the assistant goes on. What was learned (maps, "
        "soft prompts, LREs) stays as it was learned",
    )
    group.add_argument("--system", metavar="TEXT", help="the system message of --chat (default: the template's own)")


def read_chat(options: argparse.Namespace, *, one_prompt: bool = False) -> ChatForm:
    """What `--chat` and `--system` ask for.

    Args:
        one_prompt: S and T are one prompt here, so that they have one form.

    Raises:
        PatchscopesError: a system message without a chat, or two forms of one prompt.
    """
    if options.chat is None and options.system is not None:
        raise PatchscopesError("--system is the system message of a chat; give --chat too")
    if one_prompt and options.chat not in (None, "both"):
        raise PatchscopesError(
            f"S and T are the same prompt here, so that --chat {options.chat} would put half of it into a chat; give "
            "--chat alone"
        )
    return ChatForm(
        source=options.chat in ("source", "both"), target=options.chat in ("target", "both"), system=options.system
    )


def add_target_layer_option(group: argparse._ArgumentGroup, default: str) -> None:
    """The target layer, the same rule for all source layers."""
    group.add_argument(
        "--target-layer",
        type=target_layer,
        default=default,
        help="ℓ*: same, embedding, last or a number (default: %(default)s)",
    )


def add_target_layers_option(group: argparse._ArgumentGroup, aside: str) -> None:
    """The target layers, each of them for each source layer."""
    group.add_argument(
        "--target-layers",
        type=layer_list,
        default="all",
        metavar="LAYERS",
        help=f"target layers ℓ*, as --layers {aside}",
    )


def add_layer_range_option(group: argparse._ArgumentGroup) -> None:
    """The source layers under the name that earlier reproductions use."""
    group.add_argument("--layer-range", dest="layers", type=layer_list, metavar="LAYERS", help="the same as --layers")


def add_facts_file(group: argparse._ArgumentGroup, *relations: str) -> None:
    """The file of facts; without it those of some relations that come along, or of all of them."""
    group.add_argument(
        "facts",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="facts as .json or .csv with `prompt`, `subject` and `attribute`, or the .json of a relation (default: "
        f"{', '.join(relations) or 'all'} of data/relations)",
    )


def add_noise_options(group: argparse._ArgumentGroup, *, noise: float, n_noise_samples: int) -> None:
    """Of causal tracing."""
    group.add_argument(
        "--noise",
        type=real_from_zero,
        default=noise,
        metavar="FACTOR",
        help="standard deviation of the noise, in those of the subjects' embeddings (default: %(default)s)",
    )
    group.add_argument(
        "--noise-samples",
        type=positive,
        default=n_noise_samples,
        metavar="N",
        help="corrupted runs of each fact (default: %(default)s)",
    )
