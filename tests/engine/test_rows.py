"""Rows that write several vectors, cut edges and have several prompts: both engines, and what any of it must mean."""

import random
import warnings
from contextlib import nullcontext

import pytest
import torch
from conftest import FAMILIES, VOCABULARY

from patchscopes.engine import row_blocks, row_proof
from patchscopes.engine.extract import extract_representations
from patchscopes.engine.prefix import PrefixLayer
from patchscopes.engine.sublayers import check_plain_hooks
from patchscopes.errors import PatchscopesError
from patchscopes.model.layers import EMBEDDING
from patchscopes.patch import (
    Cut,
    Row,
    TargetPrompt,
    Write,
    generate_rows,
    patch_generate,
    patch_logits,
    patch_rows,
    patch_rows_in_batches,
)

TOKENS = torch.arange(20, 32)
BLOCKS = (0, 1, 2, 3)
LAYERS = (EMBEDDING, *BLOCKS)
LAST = len(TOKENS) - 1


def can(model, feature: str) -> bool:
    """Whether plain hooks can do it on this model."""
    try:
        check_plain_hooks(model, feature)
    except PatchscopesError:
        return False
    return True


def random_vectors(model, n_vectors: int, seed: int = 0):
    """Of the size of the model's own representations in block 1."""
    own = extract_representations(model, [TOKENS], [-1], [1])[0, 0]
    return torch.randn(n_vectors, model.cfg.d_model, generator=torch.Generator().manual_seed(seed)) * own.std()


def noise_targets(model, position: int = 4, n_samples: int = 2):
    """One prompt as it is, and with noise on what its tokens put into block 0 from i* on."""
    own = extract_representations(model, [TOKENS] * len(TOKENS), list(range(len(TOKENS))), [EMBEDDING])[:, 0]
    noise = torch.randn(n_samples, *own.shape, generator=torch.Generator().manual_seed(7)) * own.std()
    noise[:, :position] = 0
    return [
        TargetPrompt(model, TOKENS, position),
        *(TargetPrompt(model, TOKENS, position, soft_prompt=own + sample) for sample in noise),
    ]


def random_rows(model, targets, n_rows: int, seed: int, features=("attn_out", "mlp_out", "cuts")):
    """Rows with up to three writes and two cuts, anything mixed with anything that the model can."""
    draw = random.Random(seed)
    vectors = iter(random_vectors(model, 3 * n_rows, seed))
    sites = ["resid", "resid", *(site for site in ("attn_out", "mlp_out") if site in features and can(model, site))]
    most_cuts = 2 if "cuts" in features and can(model, "cuts") else 0
    rows = []
    for _ in range(n_rows):
        target = draw.choice(targets)
        places = range(target.position, len(target.tokens))
        writes, cuts = [], []
        for _ in range(draw.randint(0, 3)):
            site = draw.choice(sites)
            layer = draw.choice(LAYERS if site == "resid" else BLOCKS)
            writes.append(Write(position=draw.choice(places), layer=layer, vector=next(vectors), site=site))
        for _ in range(draw.randint(0, most_cuts)):
            # The nearest keys stay: windows of some families hold no others.
            query = draw.choice(places)
            keys = tuple(draw.sample(range(query), draw.randint(0, max(0, query - 1)))) if query > 0 else ()
            keys = tuple(key for key in keys if key != query - 1)
            cuts.append(Cut(query=query, keys=keys, layers=tuple(draw.sample(BLOCKS, 2))))
        rows.append(Row(target=target, writes=tuple(writes), cuts=tuple(cuts)))
    return rows


def assert_same(rows, **options):
    fast, hooks = (patch_rows(rows, engine=engine, **options) for engine in ("fast", "hooks"))
    torch.testing.assert_close(fast, hooks, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_fast_equals_hooks_in_any_mixture(self, tiny_models, family):
        model = tiny_models(family)
        targets = [*noise_targets(model), TargetPrompt(model, TOKENS.flip(0), 0), TargetPrompt(model, TOKENS[:7], -1)]
        assert_same(random_rows(model, targets, 25, seed=1))

    def test_same_generation(self, tiny_models, family):
        model = tiny_models(family)
        targets = [*noise_targets(model), TargetPrompt(model, TOKENS.flip(0), 6)]
        rows = random_rows(model, targets, 8, seed=2)
        answers = [generate_rows(rows, max_new_tokens=4, engine=engine) for engine in ("fast", "hooks")]
        assert torch.equal(*answers)

    def test_what_is_used_is_proved(self, tiny_models, family):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for need in ("attn_out", "mlp_out", "cuts", "prompts"):
                if need == "prompts" or can(model, need):
                    assert row_proof.find_failure(target, need) is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("engine", ["fast", "hooks"])
class TestProperties:
    def test_a_row_that_does_nothing_is_the_clean_run(self, tiny_models, family, engine):
        model = tiny_models(family)
        for position in (0, 5, -1):
            target = TargetPrompt(model, TOKENS, position)
            rows = [Row(target=target), Row(target=target, cuts=(Cut(query=LAST, keys=(), layers=BLOCKS),))]
            expected = model(TOKENS[None])[0, -1].expand(2, -1)
            torch.testing.assert_close(patch_rows(rows, engine=engine), expected, atol=1e-4, rtol=1e-4)

    def test_what_is_written_over_itself_changes_nothing(self, tiny_models, family, engine):
        model = tiny_models(family)
        _, cache = model.run_with_cache(TOKENS[None])
        hooks = {"resid": "hook_resid_post", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}
        writes = tuple(
            Write(position=position, layer=layer, vector=cache[f"blocks.{layer}.{hook}"][0, position], site=site)
            for site, hook in hooks.items()
            for layer in BLOCKS
            for position in (0, 4, LAST)
        )
        rows = [Row(target=TargetPrompt(model, TOKENS, 0), writes=writes)]
        expected = model(TOKENS[None])[:, -1]
        torch.testing.assert_close(patch_rows(rows, engine=engine), expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("position", [0, 5, -1])
    def test_one_write_at_i_is_the_plain_patch(self, tiny_models, family, engine, position):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, position)
        vectors, layers = random_vectors(model, 10), [*LAYERS, *LAYERS]
        rows = [
            Row(target=target, writes=(Write(position=target.position, layer=layer, vector=vector),))
            for layer, vector in zip(layers, vectors, strict=True)
        ]
        plain = patch_logits(target, vectors, layers, engine=engine)
        torch.testing.assert_close(patch_rows(rows, engine=engine), plain, atol=1e-4, rtol=1e-4)
        said = patch_generate(target, vectors, layers, max_new_tokens=3, engine=engine)
        assert torch.equal(generate_rows(rows, max_new_tokens=3, engine=engine), said)

    def test_of_several_writes_to_one_place_the_last_one_wins(self, tiny_models, family, engine):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, 3)
        for site in ("resid", "attn_out", "mlp_out"):
            writes = [Write(position=6, layer=2, vector=v, site=site) for v in random_vectors(model, 3)]
            twice, last = Row(target=target, writes=tuple(writes)), Row(target=target, writes=(writes[-1],))
            logits = patch_rows([twice, last], engine=engine)
            torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)

    def test_what_leaves_a_block_hides_what_is_done_in_it(self, tiny_models, family, engine):
        model = tiny_models(family)
        target = TargetPrompt(model, TOKENS, LAST)
        attention, mlp, residual = random_vectors(model, 3)
        resid = Write(position=LAST, layer=2, vector=residual)
        sublayers = (
            Write(position=LAST, layer=2, vector=attention, site="attn_out"),
            Write(position=LAST, layer=2, vector=mlp, site="mlp_out"),
        )
        cuts = (Cut(query=LAST, keys=(0, 1), layers=(2,)),)
        rows = [Row(target=target, writes=(resid,)), Row(target=target, writes=(*sublayers, resid), cuts=cuts)]
        logits = patch_rows(rows, engine=engine)
        torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)

    def test_rows_in_one_call_are_rows_one_by_one(self, tiny_models, family, engine):
        model = tiny_models(family)
        targets = [*noise_targets(model, 2), TargetPrompt(model, TOKENS.flip(0), 1), TargetPrompt(model, TOKENS[:5], 0)]
        rows = random_rows(model, targets, 14, seed=5)
        together = patch_rows(rows, engine=engine)
        alone = torch.cat([patch_rows([row], engine=engine) for row in rows])
        torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)
        in_batches = torch.cat(list(patch_rows_in_batches(rows, engine=engine, batch_size=4)))
        torch.testing.assert_close(in_batches, alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("engine", ["fast", "hooks"])
class TestCuts:
    @pytest.mark.parametrize("n_cut", [1, 3])
    def test_a_prompt_cut_off_from_its_beginning_is_the_prompt_without_it(self, llama, engine, n_cut):
        # Its rotary positions are relative.
        cuts = tuple(Cut(query=query, keys=tuple(range(n_cut)), layers=BLOCKS) for query in range(n_cut, len(TOKENS)))
        rows = [Row(target=TargetPrompt(llama, TOKENS, n_cut), cuts=cuts)]
        expected = llama(TOKENS[None, n_cut:])[:, -1]
        torch.testing.assert_close(patch_rows(rows, engine=engine), expected, atol=1e-4, rtol=1e-4)

    def test_a_cut_acts_in_its_own_layers(self, tiny_models, engine):
        # On the last token in the last block a cut is only felt there.
        model = tiny_models("gpt2")
        target = TargetPrompt(model, TOKENS)
        keys = tuple(range(LAST))
        rows = [Row(target=target, cuts=(Cut(query=LAST, keys=keys, layers=layers),)) for layers in ((), (0,), (3,))]
        logits = patch_rows(rows, engine=engine)
        assert (logits[0] - logits[1]).abs().max() > 1e-3
        assert (logits[0] - logits[2]).abs().max() > 1e-3
        assert (logits[1] - logits[2]).abs().max() > 1e-3

    def test_generated_tokens_see_what_the_last_one_did_not(self, llama, engine):
        cuts = (Cut(query=LAST, keys=tuple(range(LAST)), layers=BLOCKS),)
        row = Row(target=TargetPrompt(llama, TOKENS), cuts=cuts)
        said = generate_rows([row], max_new_tokens=2, engine=engine)[0]
        # What the new token sees of the last one, and nothing more of it, is changed: so the last one's states are
        # written, and the new token is read with no cut.
        longer = Row(target=TargetPrompt(llama, torch.cat([TOKENS, said[:1]]), LAST), cuts=cuts)
        assert int(patch_rows([longer], engine="hooks").argmax()) == int(said[1])


class TestTogether:
    def test_stop_is_given_the_numbers_of_the_rows(self, llama):
        targets = [TargetPrompt(llama, TOKENS, 3), TargetPrompt(llama, TOKENS[:7], 2)]
        rows = random_rows(llama, targets, 9, seed=4)
        seen = set()

        def stop(tokens, numbers):
            assert tokens.shape[0] == len(numbers)
            seen.update(numbers.tolist())
            return numbers % 2 == 0

        whole = generate_rows(rows, max_new_tokens=4, engine="fast")
        stopped = generate_rows(rows, max_new_tokens=4, engine="fast", stop=stop)
        assert seen == set(range(9))
        end = llama.tokenizer.eos_token_id
        for number, (full, short) in enumerate(zip(whole.tolist(), stopped.tolist(), strict=True)):
            assert short == ([full[0], end, end, end] if number % 2 == 0 else full)

    def test_noise_samples_share_the_run_of_their_common_beginning(self, llama):
        targets = noise_targets(llama, position=6, n_samples=3)[1:]
        patch_rows([Row(target=target) for target in targets], engine="fast")
        prefixes = [target.clean_run.prefixes[0][0] for target in targets]
        assert len({prefix.data_ptr() for prefix in prefixes}) == 1

    def test_clean_runs_computed_together_are_those_computed_alone(self, tiny_models):
        for family in ("gpt2", "bloom", "gemma3"):
            model = tiny_models(family)
            together, alone = ([*noise_targets(model, 5), TargetPrompt(model, TOKENS.flip(0), 5)] for _ in range(2))
            patch_rows([Row(target=target) for target in together], engine="fast")
            for target, other in zip(together, alone, strict=True):
                for one, two in zip(target.clean_run.residuals, other.clean_run.residuals, strict=True):
                    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)

    def test_the_users_hooks_fire(self, tiny_models):
        model = tiny_models("gpt2")
        rows = random_rows(model, [TargetPrompt(model, TOKENS, 3)], 4, seed=1)
        fired = []
        model.hook_dict["blocks.1.hook_resid_post"].add_hook(lambda value, hook: fired.append(len(value)))
        try:
            patch_rows(rows)
        finally:
            model.reset_hooks()
        assert fired


class TestProof:
    def test_auto_uses_what_is_proved(self, llama):
        rows = random_rows(llama, noise_targets(llama), 12, seed=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert set(row_proof.choose_row_engines(rows, "auto")) == {"fast"}
            torch.testing.assert_close(patch_rows(rows), patch_rows(rows, engine="hooks"), atol=1e-3, rtol=1e-4)

    @pytest.mark.parametrize(
        ("need", "broken"), [("cuts", "cut_edges"), ("attn_out", "written_over"), ("mlp_out", "written_over")]
    )
    def test_an_engine_that_does_not_do_it_is_found(self, tiny_models, monkeypatch, need, broken):
        harmless = {"cut_edges": lambda twin, number, call, *args: call, "written_over": lambda *args: nullcontext()}
        monkeypatch.setattr(row_blocks, broken, harmless[broken])
        monkeypatch.setattr(row_proof, "_failures", type(row_proof._failures)())
        model = tiny_models("llama")
        target = TargetPrompt(model, TOKENS, 3)
        with pytest.warns(UserWarning, match=f"rows with {need} use the slow hooks engine"):
            assert "differs from plain hooks" in row_proof.find_failure(target, need)
        rows = [row for row in random_rows(model, [target], 20, seed=1, features=(need,)) if need in row.features]
        assert set(row_proof.choose_row_engines(rows, "auto")) == {"hooks"}

    def test_rows_of_another_prompts_prefix_are_found(self, tiny_models, monkeypatch):
        def first_of_all(self, of_rows):
            keys, values = (part[:1].expand(len(of_rows[0]), -1, -1, -1) for part in self.prefix)
            return torch.cat([keys, of_rows[0]], dim=-2), torch.cat([values, of_rows[1]], dim=-2)

        monkeypatch.setattr(PrefixLayer, "prepend_prefix", first_of_all)
        target = TargetPrompt(tiny_models("llama"), TOKENS, 3)
        assert row_proof._prove(target, "prompts") is not None


class TestErrors:
    @pytest.mark.parametrize(
        ("write", "message"),
        [
            ({"position": 12, "layer": 1}, "positions 0 to 11"),
            ({"position": -1, "layer": 1}, "positions 0 to 11"),
            ({"position": 2, "layer": 1}, "before the target prompt's own position 3"),
            ({"position": 5, "layer": 4}, "layer 4 does not exist"),
            ({"position": 5, "layer": -1, "site": "mlp_out"}, "only blocks have mlp_out"),
            ({"position": 5, "layer": 1, "vector": torch.zeros(7)}, r"\[32\], got \[7\]"),
        ],
    )
    def test_writes_that_do_not_fit(self, llama, write, message):
        target = TargetPrompt(llama, TOKENS, 3)
        with pytest.raises(PatchscopesError, match=message):
            Row(target=target, writes=(Write(**{"vector": torch.zeros(32), **write}),))

    @pytest.mark.parametrize(
        ("cut", "message"),
        [
            (Cut(query=12, keys=(0,), layers=(0,)), "positions 0 to 11"),
            (Cut(query=2, keys=(0,), layers=(0,)), "before the target prompt's own position 3"),
            (Cut(query=5, keys=(6,), layers=(0,)), "key 6 cannot be cut from the query at position 5"),
            (Cut(query=5, keys=(-1,), layers=(0,)), "key -1 cannot be cut"),
            (Cut(query=5, keys=(0,), layers=(4,)), "layer 4 does not exist"),
            (Cut(query=5, keys=(0,), layers=(EMBEDDING,)), "EMBEDDING .* has no attention"),
            (Cut(query=5, keys=tuple(range(6)), layers=(1,)), "no key in block 1"),
        ],
    )
    def test_cuts_that_do_not_fit(self, llama, cut, message):
        with pytest.raises(PatchscopesError, match=message):
            Row(target=TargetPrompt(llama, TOKENS, 3), cuts=(cut,))

    @pytest.mark.parametrize("engine", ["fast", "hooks"])
    def test_cuts_of_a_whole_window_of_attention(self, tiny_models, engine):
        # Blocks of this model see the 4 nearest tokens.
        target = TargetPrompt(tiny_models("mistral"), TOKENS, 6)
        rows = [Row(target=target, cuts=(Cut(query=9, keys=keys, layers=(2,)),)) for keys in ((6, 7, 8), (6, 7, 8, 9))]
        assert patch_rows(rows[:1], engine=engine).isfinite().all()
        with pytest.raises(PatchscopesError, match="query at position 9 no key in block 2, whose attention sees a win"):
            patch_rows(rows, engine=engine)

    def test_rows_of_different_models(self, tiny_models):
        rows = [Row(target=TargetPrompt(tiny_models(family), TOKENS)) for family in ("llama", "gpt2")]
        with pytest.raises(PatchscopesError, match="different models"):
            patch_rows(rows)

    def test_no_rows(self):
        with pytest.raises(PatchscopesError, match="no rows"):
            patch_rows([])

    def test_no_room(self, llama):
        with pytest.raises(PatchscopesError, match="do not fit"):
            generate_rows([Row(target=TargetPrompt(llama, torch.arange(VOCABULARY).repeat(2)[:512]))])

    def test_what_hooks_cannot_do(self, tiny_models):
        model = tiny_models("gptj")
        row = Row(target=TargetPrompt(model, TOKENS), cuts=(Cut(query=LAST, keys=(0,), layers=(1,)),))
        for engine in ("auto", "hooks"):
            with pytest.raises(PatchscopesError, match="GPTJ.* no hook that cuts edges"):
                patch_rows([row], engine=engine)
