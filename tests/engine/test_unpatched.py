"""Generating after prompts with nothing patched."""

import pytest
import torch
from conftest import CONTEXT

from patchscopes.engine.unpatched import generate_after
from patchscopes.errors import PatchscopesError


class TestGenerateAfter:
    PROMPTS = ("one two", "one two three", "one", "one tree", "one two")

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "gptj"])
    def test_equals_each_prompt_alone(self, tiny_models, family):
        model = tiny_models(family)
        together = generate_after(model, self.PROMPTS, max_new_tokens=5, batch_size=3)
        for prompt, tokens in zip(self.PROMPTS, together, strict=True):
            assert torch.equal(generate_after(model, [prompt], max_new_tokens=5, engine="hooks")[0], tokens)
            sequence = model.to_tokens(prompt)
            for token in tokens:
                assert model(sequence)[0, -1].argmax() == token
                if token in model.tokenizer.all_special_ids:
                    break
                sequence = torch.cat([sequence, token.view(1, 1)], dim=1)

    def test_an_end_of_sequence_in_a_prompt_does_not_end_it(self, llama):
        end = llama.tokenizer.eos_token_id
        prompts = [[5, end, 7], [5, 9, 9, 9]]
        together = generate_after(llama, prompts, max_new_tokens=4)
        assert torch.equal(together[0], generate_after(llama, prompts[:1], max_new_tokens=4)[0])

    def test_prompts_with_nothing_in_common(self, llama):
        """As those of models without a BOS token may be."""
        prompts = [[5, 6], [6, 5, 7], [5, 9], [8]]
        together = generate_after(llama, prompts, max_new_tokens=4)
        for prompt, tokens in zip(prompts, together, strict=True):
            assert torch.equal(generate_after(llama, [prompt], max_new_tokens=4)[0], tokens)

    def test_nothing_and_mistakes(self, llama):
        assert generate_after(llama, [], max_new_tokens=3).shape == (0, 3)
        with pytest.raises(PatchscopesError, match="do not fit the model's context"):
            generate_after(llama, [[5] * (CONTEXT - 6)], max_new_tokens=20)
