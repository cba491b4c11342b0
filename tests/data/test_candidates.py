"""Files of target prompts: candidates, and those that were chosen."""

import json

import pytest

from patchscopes.data.target_prompts import Candidate, PromptBand, load_best_prompts, load_candidates
from patchscopes.errors import PatchscopesError
from patchscopes.prompts import SIMPLESCOPE_PROMPT, build_token_identity_prompt

BAND = {"first": 0, "last": 3, "prompt": "a ?", "placeholder": "?", "layers": [0, 3], "chosen_in": 0.5}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


class TestCandidates:
    def test_those_of_the_library(self):
        candidates = load_candidates()
        prompts = [candidate.prompt for candidate in candidates]
        assert {build_token_identity_prompt(), SIMPLESCOPE_PROMPT} <= set(prompts)
        families = {candidate.family for candidate in candidates}
        assert families == {
            "identity",
            "next token",
            "nothing",
            "words",
            "sentence",
            "separators",
            "placeholders",
        }
        assert len(set(prompts)) == len(prompts)
        assert {candidate.placeholder for candidate in candidates} == {"?", "x"}

    def test_three_formats_say_the_same(self, tmp_path):
        expected = (Candidate(prompt=" one, two ?"), Candidate(prompt="no ? "))
        rows = [{"prompt": " one, two ?"}, {"prompt": "no ? "}]
        assert load_candidates(write(tmp_path / "a.json", rows)) == expected
        assert load_candidates(write(tmp_path / "a.csv", 'prompt\n" one, two ?"\nno ? \n')) == expected
        # As some editors save it: a byte order mark, lines that end in two characters, empty ones at the end.
        (tmp_path / "a.txt").write_bytes("\ufeff one, two ?\r\n\r\nno ? \r\n  \r\n".encode())
        assert load_candidates(tmp_path / "a.txt") == expected

    def test_placeholders_and_families(self, tmp_path):
        table = 'family,placeholder,prompt\nmine,x,"one\ntwo x"\n,,$1 ?\n'
        mine, other = load_candidates(write(tmp_path / "a.csv", table))
        assert mine == Candidate(prompt="one\ntwo x", placeholder="x", family="mine")
        assert other == Candidate(prompt="$1 ?", placeholder="?", family="unspecified")

    def test_a_prompt_that_is_given_again_is_tried_once(self, tmp_path):
        rows = [
            {"prompt": "x ?", "family": "first"},
            {"prompt": "x ?", "placeholder": "x"},
            {"prompt": "x ?", "family": "second"},
        ]
        first, second = load_candidates(write(tmp_path / "a.json", rows))
        assert (first.family, first.placeholder, second.placeholder) == ("first", "?", "x")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "no"}, "item 2: the prompt 'no' has no placeholder '?'; put one into it, or name another as"),
            ({"prompt": "a ?", "placeholder": "x"}, "item 2: the prompt 'a ?' has no placeholder 'x'"),
            ({"prompt": " "}, "item 2: expected the string `prompt`"),
            ({"prompt": ["?"]}, "item 2: expected the string `prompt`"),
            ({"prompt": "a ?", "placeholder": " "}, "item 2: expected the string `prompt`, and perhaps"),
            ({"prompt": "a ?", "family": 3}, "item 2: expected the string `prompt`, and perhaps"),
            ({"text": "a ?"}, "item 2: expected the string `prompt`"),
            ("a ?", "item 2: expected the string `prompt`"),
            ({"prompt": "\ud800 ?"}, "item 2: half a surrogate pair"),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path, row, message):
        path = write(tmp_path / "a.json", [{"prompt": "right ?"}, row])
        with pytest.raises(PatchscopesError) as caught:
            load_candidates(path)
        assert f"{path}, {message}" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", "[]", "has no target prompts; give at least one"),
            ("a.txt", "\n \n", "has no target prompts"),
            ("a.txt", "one ?\ntwo\n", "line 2: the prompt 'two' has no placeholder"),
            ("a.csv", "prompt\n", "has no target prompts"),
            ("a.csv", "prompt,family\na ?\n", "line 2: expected 2 cells"),
            ("a.csv", "text\na ?\n", "line 2: expected the string `prompt`"),
            ("a.json", '{"prompt": "?"}', "expected a list of objects"),
            ("a.json", "[{]", "line 1: not JSON"),
            ("a.md", "?", "expected a .json or .* or .txt file of target prompts"),
        ],
    )
    def test_bad_files_are_named(self, tmp_path, name, text, message):
        with pytest.raises(PatchscopesError, match=message):
            load_candidates(write(tmp_path / name, text))

    def test_no_file(self, tmp_path):
        with pytest.raises(PatchscopesError, match="there is no file"):
            load_candidates(tmp_path / "a.txt")


class TestBestPrompts:
    def test_are_read_from_the_result_file(self, tmp_path):
        path = write(tmp_path / "a.json", {"experiment": "target_prompts", "results": {"bands": [BAND]}})
        assert load_best_prompts(path) == (PromptBand(first=0, last=3, prompt="a ?", placeholder="?"),)

    @pytest.mark.parametrize(
        "content",
        [
            {},
            {"experiment": "next_token", "results": {"bands": [BAND]}},
            {"experiment": "target_prompts"},
            {"experiment": "target_prompts", "results": []},
            {"experiment": "target_prompts", "results": {"bands": []}},
            {"experiment": "target_prompts", "results": {"bands": [BAND | {"first": "0"}]}},
            {"experiment": "target_prompts", "results": {"bands": [BAND, {}]}},
            {"experiment": "target_prompts", "results": {"bands": [3]}},
        ],
    )
    def test_another_file_is_refused(self, tmp_path, content):
        with pytest.raises(PatchscopesError, match="is no result of run_target_prompts.py; give the JSON file"):
            load_best_prompts(write(tmp_path / "a.json", content))

    def test_no_object_and_no_file(self, tmp_path):
        with pytest.raises(PatchscopesError, match="expected one object"):
            load_best_prompts(write(tmp_path / "a.json", []))
        with pytest.raises(PatchscopesError, match="there is no file"):
            load_best_prompts(tmp_path / "b.json")
