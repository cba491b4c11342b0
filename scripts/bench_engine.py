"""Time the fast engine beside plain hooks and the logit lens, on the same rows in one run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from options import common_parser, positive, run_script
from torch import Tensor, nn
from tqdm import tqdm

from patchscopes.data.files import DATA_FOLDER
from patchscopes.data.questions import load_questions
from patchscopes.data.texts import TextSet, draw_samples, load_texts
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.target import TargetPrompt, placeholder_target
from patchscopes.engine.unembedding import logit_lens
from patchscopes.experiments.config import MultiHopConfig
from patchscopes.experiments.multi_hop_patching import build_patching
from patchscopes.model.environment import describe_environment
from patchscopes.model.loading import load_model
from patchscopes.patch import patch_generate, patch_logits
from patchscopes.plots.all import plot_benchmark, save_png
from patchscopes.prompts import build_token_identity_prompt
from patchscopes.results import build_document, write_json
from patchscopes.tokens import to_token_ids

# Well and little known names, for the generation benchmark.
ENTITIES = (
    "Diana, Princess of Wales",
    "Alexander the Great",
    "Muhammad Ali",
    "Mount Kilimanjaro",
    "the Suez Canal",
    "Marie Curie",
    "the Gobi Desert",
    "Johann Sebastian Bach",
    "Lake Titicaca",
    "the Hubble Space Telescope",
)
ENTITY_PROMPT = (
    "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational major "
    "appliance and consumer electronics corporation, x"
)
# Of the answers of the two-hop question, as in `run_multi_hop.py`.
GRID_NEW_TOKENS = MultiHopConfig().max_new_tokens


@dataclass(frozen=True)
class Way:
    """One way to compute something: its name, the call, and how often it is timed."""

    name: str
    call: Callable[[], Tensor]
    runs: int


def timed(way: Way, model: nn.Module) -> tuple[float, Tensor]:
    """The median of the seconds that the way takes, and its answer. Fast ways get a call to warm up."""
    if way.runs > 1:
        way.call()
    seconds = []
    for _ in range(way.runs):
        synchronize(model)
        started = time.perf_counter()
        answer = way.call()
        synchronize(model)
        seconds.append(time.perf_counter() - started)
    return median(seconds), answer


def synchronize(model: nn.Module) -> None:
    if torch.device(model.cfg.device).type == "cuda":
        torch.cuda.synchronize()


def measured_task(title: str, n_rows: int, ways: list[Way], model: nn.Module, note: Callable[[dict], dict]) -> dict:
    """Time all ways; `note` turns their answers into figures on how well they agree."""
    measured, answers = [], {}
    for way in tqdm(ways, desc=title, unit="way"):
        seconds, answers[way.name] = timed(way, model)
        measured.append({"name": way.name, "ms_per_row": 1000 * seconds / n_rows, "runs": way.runs})
    fastest = next(way["ms_per_row"] for way in measured if way["name"] == "fast engine")
    for way in measured:
        way["times_fast_engine"] = way["ms_per_row"] / fastest
    return {"title": title, "n_rows": n_rows, "ways": measured, **note(answers)}


def sweep_task(model: nn.Module, texts: TextSet, n_samples: int, seed: int) -> dict:
    """The next token after the token-identity prompt, each sample at every layer."""
    tokens = [to_token_ids(model, text) for text in texts.texts]
    samples = draw_samples([len(ids) for ids in tokens], texts.texts, n_samples, seed)
    vectors = extract_representations(
        model, [tokens[sample.text] for sample in samples], [sample.position for sample in samples]
    ).flatten(0, 1)
    layers = list(range(model.cfg.n_layers)) * n_samples
    target = placeholder_target(model, build_token_identity_prompt())

    def note(answers: dict[str, Tensor]) -> dict:
        fast, hooks = answers["fast engine"], answers["hooks, batches of 32"]
        return {
            "largest_logit_difference": (fast - hooks).abs().max().item(),
            "same_argmax": (fast.argmax(dim=-1) == hooks.argmax(dim=-1)).float().mean().item(),
        }

    ways = [
        Way("logit lens", lambda: logit_lens(model, vectors), runs=5),
        Way("fast engine", lambda: patch_logits(target, vectors, layers, engine="fast"), runs=5),
        Way(
            "hooks, batches of 32", lambda: patch_logits(target, vectors, layers, engine="hooks", batch_size=32), runs=1
        ),
        Way("hooks, one by one", lambda: patch_logits(target, vectors, layers, engine="hooks", batch_size=1), runs=1),
    ]
    title = f"next token, {n_samples} samples × {model.cfg.n_layers} layers"
    return measured_task(title, len(layers), ways, model, note)


def generation_task(model: nn.Module, n_new_tokens: int) -> dict:
    """A description of each entity from its representation at ten layers."""
    layers = [round(place * (model.cfg.n_layers - 1) / 9) for place in range(10)]
    vectors = extract_representations(model, ENTITIES, [-1] * len(ENTITIES), layers).flatten(0, 1)
    rows = layers * len(ENTITIES)
    target: TargetPrompt = placeholder_target(model, ENTITY_PROMPT, "x")

    title = f"{n_new_tokens} tokens, 10 entities × 10 layers"
    return measured_generation(title, target, vectors, rows, n_new_tokens, ("recomputing loop, one by one", 1))


def grid_task(model: nn.Module, n_new_tokens: int) -> dict:
    """The answers of one two-hop question, patched at every pair (ℓ, ℓ*)."""
    question = load_questions(DATA_FOLDER / "multihop_examples.json")[0]
    layers = list(range(model.cfg.n_layers))
    source, position, target = build_patching(model, "patchscope", question, question)
    states = extract_representations(model, [source], [position], layers)[0]
    vectors, rows = states.repeat_interleave(len(layers), dim=0), layers * len(layers)

    title = f"{n_new_tokens} tokens, one question at {len(layers)} × {len(layers)} pairs of layers"
    return measured_generation(title, target, vectors, rows, n_new_tokens, ("hooks, batches of 32", 32))


def measured_generation(
    title: str, target: TargetPrompt, vectors: Tensor, layers: list[int], n_new_tokens: int, plain: tuple[str, int]
) -> dict:
    """Time generation by the fast engine beside plain hooks (their name and batch size); how many rows say the same."""
    plain_name, plain_batch_size = plain

    def generate(engine: str, batch_size: int | None) -> Tensor:
        return patch_generate(
            target, vectors, layers, max_new_tokens=n_new_tokens, engine=engine, batch_size=batch_size
        )

    def note(answers: dict[str, Tensor]) -> dict:
        return {"same_generations": (answers["fast engine"] == answers[plain_name]).all(dim=1).float().mean().item()}

    ways = [
        Way("fast engine", lambda: generate("fast", None), runs=3),
        Way(plain_name, lambda: generate("hooks", plain_batch_size), runs=1),
    ]
    return measured_task(title, len(layers), ways, target.model, note)


def print_tasks(results: dict) -> None:
    for task in results["tasks"]:
        print(f"\n{task['title']} ({task['n_rows']} rows)")
        for way in task["ways"]:
            ms, times = way["ms_per_row"], way["times_fast_engine"]
            seconds = ms * task["n_rows"] / 1000
            print(f"  {way['name']:<30} {ms:>10.3f} ms per row {seconds:>8.1f} s {times:>8.2f} × fast engine")
        for name, value in task.items():
            if isinstance(value, float):
                print(f"  {name.replace('_', ' '):<30} {value:>10.3g}")


def main() -> None:
    parser = common_parser(
        __doc__, "bench", methods=("next_token", "generation", "grid"), unused=("layers", "batch-size", "fresh")
    )
    parser.set_defaults(samples=16, max_new_tokens=20)
    parser.add_argument("--threads", type=positive, metavar="N", help="torch threads (default: torch's own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = load_texts(options.dataset, limit=options.samples)
    model = load_model(options.model, device=options.device, dtype=options.dtype)
    started = time.perf_counter()
    tasks = {
        "next_token": lambda: sweep_task(model, texts, options.samples, options.seed),
        "generation": lambda: generation_task(model, options.max_new_tokens),
        "grid": lambda: grid_task(model, GRID_NEW_TOKENS),
    }
    results = {"tasks": [tasks[name]() for name in options.methods]}
    config = {
        "model": options.model,
        "dataset": options.dataset,
        "n_samples": options.samples,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "methods": options.methods,
    }
    timing = {"seconds": {"total": time.perf_counter() - started}}
    document = build_document("bench", config, describe_environment(model, texts), results, timing)
    write_json(options.output_json, document)
    save_png(plot_benchmark(document), options.output_plot)
    print_tasks(results)
    print(f"\nwrote {options.output_plot} and {options.output_json}")


if __name__ == "__main__":
    run_script(main)
