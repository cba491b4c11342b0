"""Templates: those of the library, and files of one's own."""

import json
from collections import Counter

import pytest

from patchscopes.data.templates import FAMILIES, TEMPLATES_FILE, Template, find_template, load_templates, select_family
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.layer_grid_patching import build_target, build_text
from patchscopes.prompts import TOKEN_IDENTITY_DEMOS, build_entity_description_prompt, build_token_identity_prompt
from patchscopes.tokens import decode_each_token

ROW = {"name": "a", "family": "minimal", "prompt": "x is", "placeholder": "x"}


class TestThoseOfTheLibrary:
    def test_there_are_three_of_each_family(self):
        families = Counter(template.family for template in load_templates())
        assert set(families) == set(FAMILIES)
        assert min(families.values()) >= 3

    def test_those_of_the_paper_are_the_papers(self):
        templates = load_templates()
        assert find_template(templates, "token_identity").prompt == build_token_identity_prompt(TOKEN_IDENTITY_DEMOS)
        assert find_template(templates, "entity_description").prompt == build_entity_description_prompt()

    @pytest.mark.parametrize("template", load_templates(), ids=lambda template: template.name)
    def test_the_placeholder_is_a_token_of_its_own(self, smollm, template):
        target = build_target(smollm, template)
        texts = decode_each_token(smollm, target.tokens)
        assert texts[target.position].strip() == template.placeholder
        # Behind it stands what the prompt has behind it, and in a chat the end of the message.
        behind = template.prompt.rpartition(template.placeholder)[2]
        assert "".join(texts[target.position + 1 :]).startswith(behind)
        assert build_text(smollm, template).count(template.prompt) >= 1


class TestFiles:
    def test_ones_own(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps([ROW, ROW | {"name": "b", "family": "chat", "system": "Hush."}]))
        one, other = load_templates(tmp_path / "a.json")
        assert one == Template(name="a", family="minimal", prompt="x is", placeholder="x")
        assert (other.family, other.system) == ("chat", "Hush.")
        assert select_family((one, other), "chat") == (other,)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([ROW, {"name": "b"}], "item 2: expected the strings `name`, `family`, `prompt` and `placeholder`"),
            ([ROW | {"prompt": 3}], "item 1: expected the strings"),
            ([ROW | {"family": "long"}], "the family is one of patchscope, few_shot"),
            ([ROW | {"placeholder": "?"}], r"the placeholder '\?' is not in the prompt 'x is'"),
            ([ROW | {"system": "Hush."}], "only a template of the family chat has a `system` message"),
            ([ROW, ROW], "item 2: another template has the name 'a' already"),
            ([], "has no templates"),
        ],
    )
    def test_a_bad_row_is_named(self, tmp_path, rows, message):
        (tmp_path / "a.json").write_text(json.dumps(rows))
        with pytest.raises(PatchscopesError, match=message):
            load_templates(tmp_path / "a.json")

    def test_what_is_not_there(self):
        templates = load_templates(TEMPLATES_FILE)
        with pytest.raises(PatchscopesError, match="there is no template 'magic'; choose from token_identity"):
            find_template(templates, "magic")
        with pytest.raises(PatchscopesError, match="no template is of the family 'chat'; these are of patchscope"):
            select_family(templates[:2], "chat")
