"""The models known by a short name: those of the paper, of its reproductions, and the embedded ones."""

import difflib
from dataclasses import dataclass

from patchscopes.errors import PatchscopesError

EMBEDDED_MODEL = "smollm2-135m-instruct"
# Embedded too, but installed only when asked for: another family, to explain the states of the first with.
SECOND_MODEL = "gemma-3-270m"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model of the registry.

    Attributes:
        hub_id: its repository on the Hugging Face hub.
        n_layers: transformer blocks.
        n_parameters: parameters, tied ones counted once.
        gated: whether the hub asks for a licence to be accepted and a login.
    """

    alias: str
    hub_id: str
    n_layers: int
    n_parameters: int
    gated: bool = False

    def memory_gib(self, bytes_per_parameter: int) -> float:
        """Memory of the weights alone, in GiB."""
        return self.n_parameters * bytes_per_parameter / 2**30


MODELS: dict[str, ModelInfo] = {
    info.alias: info
    for info in (
        ModelInfo(
            alias=EMBEDDED_MODEL,
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            n_layers=30,
            n_parameters=134_515_008,
        ),
        ModelInfo(
            alias=SECOND_MODEL,
            hub_id="google/gemma-3-270m",
            n_layers=18,
            n_parameters=268_098_176,
            gated=True,
        ),
        ModelInfo(alias="gpt2", hub_id="openai-community/gpt2", n_layers=12, n_parameters=124_439_808),
        ModelInfo(
            alias="llama-3.2-1b-instruct",
            hub_id="meta-llama/Llama-3.2-1B-Instruct",
            n_layers=16,
            n_parameters=1_235_814_400,
            gated=True,
        ),
        ModelInfo(
            alias="llama-3.2-3b-instruct",
            hub_id="meta-llama/Llama-3.2-3B-Instruct",
            n_layers=28,
            n_parameters=3_212_749_824,
            gated=True,
        ),
        ModelInfo(
            alias="phi-3-mini",
            hub_id="microsoft/Phi-3-mini-4k-instruct",
            n_layers=32,
            n_parameters=3_821_079_552,
        ),
        ModelInfo(alias="gpt-j-6b", hub_id="EleutherAI/gpt-j-6b", n_layers=28, n_parameters=6_050_882_784),
        ModelInfo(alias="vicuna-7b", hub_id="lmsys/vicuna-7b-v1.5", n_layers=32, n_parameters=6_738_415_616),
        ModelInfo(alias="pythia-6.9b", hub_id="EleutherAI/pythia-6.9b", n_layers=32, n_parameters=6_857_302_016),
        ModelInfo(
            alias="llama-3-8b",
            hub_id="meta-llama/Meta-Llama-3-8B",
            n_layers=32,
            n_parameters=8_030_261_248,
            gated=True,
        ),
        ModelInfo(
            alias="llama-3.1-8b-instruct",
            hub_id="meta-llama/Llama-3.1-8B-Instruct",
            n_layers=32,
            n_parameters=8_030_261_248,
            gated=True,
        ),
        ModelInfo(alias="pythia-12b", hub_id="EleutherAI/pythia-12b", n_layers=36, n_parameters=11_846_072_320),
        ModelInfo(
            alias="llama-2-13b",
            hub_id="meta-llama/Llama-2-13b-hf",
            n_layers=40,
            n_parameters=13_015_864_320,
            gated=True,
        ),
        ModelInfo(alias="vicuna-13b", hub_id="lmsys/vicuna-13b-v1.5", n_layers=40, n_parameters=13_015_864_320),
    )
}

# Which model explains the states of which (paper, section 4.4), unless another one is asked for.
EXPLAINED_BY = {EMBEDDED_MODEL: SECOND_MODEL, "vicuna-7b": "vicuna-13b", "pythia-6.9b": "pythia-12b"}


def resolve_hub_id(name: str) -> str:
    """The hub id of an alias, or `name` itself if it has the form of a hub id (`owner/name`).

    Raises:
        PatchscopesError: neither; the message gives the nearest alias.
    """
    if name.lower() in MODELS:
        return MODELS[name.lower()].hub_id
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    nearest = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise PatchscopesError(
        f"no model is called {name!r}: {hint}Give an alias ({', '.join(MODELS)}), a hub id (owner/name) or the path "
        "of a folder that exists"
    )
