"""The options that scripts share, and how they are parsed. Nothing heavy is imported: a mistake is told at once."""

import argparse
from collections.abc import Callable
from pathlib import Path

from texts import add_text_options

from patchscopes.data.texts import PASSAGES
from patchscopes.errors import PatchscopesError
from patchscopes.model.layer_names import parse_layer
from patchscopes.model.registry import EMBEDDED_MODEL
from patchscopes.model.sources import find_source
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
    run.add_argument("--fresh", action="store_true", help="start over instead of going on from finished chunks")
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
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps, or auto for all GPUs (default: the best there is)")
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: float32 on a CPU, else bfloat16)",
    )
    model.add_argument(
        "--quantization", choices=QUANTIZATIONS, help="keep the weights in so many bits (default: as they are)"
    )
    model.add_argument(
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


def model_name(text: str) -> str:
    """What stands for a model; whether the hub has it, only the hub knows."""
    try:
        find_source(text)
    except PatchscopesError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def target_layer(text: str) -> str:
    """A rule for target layers, or the number of one."""
    if text not in ("same", "embedding", "last") and not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"expected same, embedding, last or a number, got {text!r}")
    return text


def chat_side(text: str) -> str:
    """Which prompts are chats."""
    if text not in ("source", "target", "both"):
        raise argparse.ArgumentTypeError(
            f"expected source, target or both, got {text!r} (before it, give plain --chat as --chat both)"
        )
    return text


def at_least(minimum: int) -> Callable[[str], int]:
    """A parser of whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return parse


natural, positive = at_least(0), at_least(1)


def real_from_zero(text: str) -> float:
    """A parser of numbers that are not negative."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return number


def name_list(names: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """A parser of comma-separated `names`."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(names)}, got {unknown[0]!r}")
        return chosen

    return parse


def file_name(suffix: str) -> Callable[[str], Path]:
    """A parser of file names that end in `suffix`."""

    def parse(text: str) -> Path:
        if Path(text).suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"expected the name of a {suffix} file, got {text!r}")
        return Path(text)

    return parse


def entity_name(text: str) -> str:
    """A name with words in it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty; give one")
    return text


def existing_file(suffix: str, advice: str) -> Callable[[str], Path]:
    """A parser of names of files that end in `suffix` and are there; the advice is what to do about one that is not."""
    parse_name = file_name(suffix)

    def parse(text: str) -> Path:
        path = parse_name(text)
        if not path.is_file():
            raise argparse.ArgumentTypeError(f"there is no file {text}; {advice}")
        return path

    return parse


def layer_list(text: str) -> tuple[int, ...] | None:
    """`0,4,8`, `0-15`, `embedding` (also -1), a mixture, or `all` (None): all blocks."""
    if text == "all":
        return None
    layers: list[int] = []
    for part in map(str.strip, text.split(",")):
        # The sign of -1 is no dash between two layers.
        dash = part.find("-", 1)
        first, last = (parse_layer(end) for end in ((part, part) if dash < 0 else (part[:dash], part[dash + 1 :])))
        if first is None or last is None or last < first:
            raise argparse.ArgumentTypeError(
                f"expected layers like 0,4,8 or 0-15 or all (embedding is one too), got {text!r}"
            )
        layers.extend(range(first, last + 1))
    if len(set(layers)) < len(layers):
        raise argparse.ArgumentTypeError(f"some layer is given twice in {text!r}")
    return tuple(layers)
