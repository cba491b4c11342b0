"""The models known by a short name: those of the paper, of its reproductions, of now, and the embedded ones."""

import difflib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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


# Alias, repository on the hub, blocks, parameters (tied ones once), and whether it is gated. Gemma 3 from 4B on and its
# vision tower are one checkpoint, which is loaded whole. `configurations.json` holds what the counts follow from.
_TABLE: tuple[tuple[str, str, int, int, bool], ...] = (
    (EMBEDDED_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct", 30, 134_515_008, False),
    ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", 36, 3_075_098_624, False),
    ("gpt2", "openai-community/gpt2", 12, 124_439_808, False),
    ("gpt-j-6b", "EleutherAI/gpt-j-6b", 28, 6_050_882_784, False),
    ("gpt-oss-20b", "openai/gpt-oss-20b", 24, 20_914_757_184, False),
    ("pythia-70m", "EleutherAI/pythia-70m", 6, 70_426_624, False),
    ("pythia-160m", "EleutherAI/pythia-160m", 12, 162_322_944, False),
    ("pythia-410m", "EleutherAI/pythia-410m", 24, 405_334_016, False),
    ("pythia-1b", "EleutherAI/pythia-1b", 16, 1_011_781_632, False),
    ("pythia-1.4b", "EleutherAI/pythia-1.4b", 24, 1_414_647_808, False),
    ("pythia-2.8b", "EleutherAI/pythia-2.8b", 32, 2_775_208_960, False),
    ("pythia-6.9b", "EleutherAI/pythia-6.9b", 32, 6_857_302_016, False),
    ("pythia-12b", "EleutherAI/pythia-12b", 36, 11_846_072_320, False),
    ("olmo-2-1b", "allenai/OLMo-2-0425-1B", 16, 1_484_916_736, False),
    ("olmo-2-7b", "allenai/OLMo-2-1124-7B", 32, 7_298_617_344, False),
    ("olmo-2-13b", "allenai/OLMo-2-1124-13B", 40, 13_716_198_400, False),
    ("olmo-2-32b", "allenai/OLMo-2-0325-32B", 64, 32_234_279_936, False),
    (SECOND_MODEL, "google/gemma-3-270m", 18, 268_098_176, True),
    ("gemma-3-1b-it", "google/gemma-3-1b-it", 26, 999_885_952, True),
    ("gemma-3-4b-it", "google/gemma-3-4b-it", 34, 4_300_079_472, True),
    ("gemma-3-12b-it", "google/gemma-3-12b-it", 48, 12_187_325_040, True),
    ("gemma-3-27b-it", "google/gemma-3-27b-it", 62, 27_432_406_640, True),
    ("qwen-3-0.6b", "Qwen/Qwen3-0.6B", 28, 596_049_920, False),
    ("qwen-3-1.7b", "Qwen/Qwen3-1.7B", 28, 1_720_574_976, False),
    ("qwen-3-4b", "Qwen/Qwen3-4B", 36, 4_022_468_096, False),
    ("qwen-3-8b", "Qwen/Qwen3-8B", 36, 8_190_735_360, False),
    ("qwen-3-14b", "Qwen/Qwen3-14B", 40, 14_768_307_200, False),
    ("qwen-3-32b", "Qwen/Qwen3-32B", 64, 32_762_123_264, False),
    ("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", 32, 3_821_079_552, False),
    ("mistral-small-24b", "mistralai/Mistral-Small-24B-Instruct-2501", 40, 23_572_403_200, False),
    ("llama-2-13b", "meta-llama/Llama-2-13b-hf", 40, 13_015_864_320, True),
    ("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 32, 8_030_261_248, True),
    ("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", 32, 8_030_261_248, True),
    ("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", 16, 1_235_814_400, True),
    ("llama-3.2-3b-instruct", "meta-llama/Llama-3.2-3B-Instruct", 28, 3_212_749_824, True),
    ("llama-3.3-70b-instruct", "meta-llama/Llama-3.3-70B-Instruct", 80, 70_553_706_496, True),
    ("vicuna-7b", "lmsys/vicuna-7b-v1.5", 32, 6_738_415_616, False),
    ("vicuna-13b", "lmsys/vicuna-13b-v1.5", 40, 13_015_864_320, False),
)

MODELS: dict[str, ModelInfo] = {
    alias: ModelInfo(alias=alias, hub_id=hub_id, n_layers=n_layers, n_parameters=n_parameters, gated=gated)
    for alias, hub_id, n_layers, n_parameters, gated in _TABLE
}


@cache
def load_configurations() -> dict[str, dict[str, Any]]:
    """For each alias the numbers of the model's published configuration that its size follows from."""
    return json.loads((Path(__file__).parent / "configurations.json").read_text(encoding="utf-8"))


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
