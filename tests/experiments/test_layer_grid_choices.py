"""Which names and templates a layer grid takes."""

import pytest
from made_up_names import TEMPLATES

from patchscopes.data.entities import Entity, load_entities
from patchscopes.data.files import DATA_FOLDER
from patchscopes.errors import PatchscopesError
from patchscopes.experiments.config import LayerGridConfig
from patchscopes.experiments.layer_grid_choices import choose_names, choose_source, choose_templates, find_name

NAMES = (
    Entity(name="Albert Einstein", keywords=("physicist", "German", "Einstein")),
    Entity(name="Marie Curie", keywords=("physicist", "radium", "German")),
    Entity(name="Cold War", keywords=("Soviet", "nuclear")),
    Entity(name="Great War", keywords=("1914",)),
    Entity(name="Amazon River", keywords=("Brazil", "Andes")),
    Entity(name="lion", keywords=("cat", "Africa")),
)


class TestFindName:
    @pytest.mark.parametrize(
        ("prompt", "name", "part"),
        [
            ("Albert Einstein", "Albert Einstein", "Albert Einstein"),
            ("Einstein", "Albert Einstein", "Einstein"),
            ("einstein", "Albert Einstein", "einstein"),
            ("What did ALBERT EINSTEIN find?", "Albert Einstein", "ALBERT EINSTEIN"),
            ("In his youth Einstein was", "Albert Einstein", "Einstein"),
            ("In the Cold War, people", "Cold War", "Cold War"),
            ("We saw a lion among lions", "lion", "lion"),
        ],
    )
    def test_the_longest_part_of_a_name(self, prompt, name, part):
        found, as_written = find_name(NAMES, prompt)
        assert found.name == name
        assert as_written.startswith(part)

    @pytest.mark.parametrize("prompt", ["millions of rivers", "the river is long", "a war", "Ein", ""])
    def test_no_name(self, prompt):
        assert find_name(NAMES, prompt) is None

    def test_several_names(self):
        with pytest.raises(PatchscopesError, match="may be about 'Cold War', 'Open War'; write the whole name"):
            find_name((*NAMES, Entity(name="Open War")), "Cold War, Open War")


class TestSource:
    def test_keywords_are_no_words_of_the_name(self):
        source = choose_source(NAMES, LayerGridConfig(source_prompt="Einstein was"))
        assert (source.entity.name, source.prompt, source.name) == ("Albert Einstein", "Einstein was", "Einstein")
        assert source.keywords == ("physicist", "German")

    def test_ones_own_name_and_keywords(self):
        config = LayerGridConfig(source_prompt="Ask Ada Lovelace this", name="Ada Lovelace", keywords=("a", "b"))
        source = choose_source(NAMES, config)
        assert (source.entity.name, source.name, source.keywords) == ("Ada Lovelace", "Ada Lovelace", ("a", "b"))
        assert source.prompt == "Ask Ada Lovelace this"
        # Without a name the whole prompt is one.
        assert choose_source(NAMES, LayerGridConfig(source_prompt="Ada", keywords=("a", "b"))).name == "Ada"
        # The user's keywords go before those of the file.
        assert choose_source(NAMES, LayerGridConfig(source_prompt="lion", keywords=("a", "b"))).keywords == ("a", "b")

    def test_the_first_name_unless_told(self):
        assert choose_source(NAMES[2:], LayerGridConfig()).name == "Cold War"
        assert choose_source(NAMES[2:], LayerGridConfig(keywords=("a", "b"))).keywords == ("a", "b")
        with pytest.raises(PatchscopesError, match="no name of the file has two keywords"):
            choose_source(NAMES[3:4], LayerGridConfig())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"source_prompt": "Ada"}, "no name of the file stands in the source prompt 'Ada'; say what counts"),
            ({"source_prompt": "Great War"}, "'Great War' has 1 keywords that are no words of the name"),
            ({"source_prompt": "lion", "keywords": ("lion", "cat")}, "'lion' has 1 keywords"),
            ({"source_prompt": "a cat", "name": "dog", "keywords": ("a", "b")}, "the name 'dog' is not in the source"),
        ],
    )
    def test_mistakes(self, options, message):
        with pytest.raises(PatchscopesError, match=message):
            choose_source(NAMES, LayerGridConfig(**options))


class TestNames:
    def test_the_control_is_of_other_names_that_do_not_share_what_is_known(self):
        chosen = choose_names(NAMES, LayerGridConfig(source_prompt="Einstein"))
        others = {source.entity.name for source in chosen.others}
        # Marie Curie is a physicist and, here, German.
        assert others == {"Cold War", "Great War", "Amazon River", "lion"}
        assert chosen.several == ()
        assert len(choose_names(NAMES, LayerGridConfig(source_prompt="lion", n_others=2)).others) == 2

    def test_several_names_have_two_keywords(self):
        chosen = choose_names(NAMES, LayerGridConfig(mode="multi"))
        assert [source.entity.name for source in chosen.several] == [
            "Albert Einstein",
            "Marie Curie",
            "Cold War",
            "Amazon River",
            "lion",
        ]
        assert (chosen.source, chosen.others) == (None, ())
        assert len(choose_names(NAMES, LayerGridConfig(mode="multi", n_names=3)).several) == 3
        with pytest.raises(PatchscopesError, match="multi takes several names with two keywords each, and 1 of"):
            choose_names(NAMES[2:4], LayerGridConfig(mode="multi"))

    def test_those_of_the_library_are_enough(self):
        entities = load_entities(DATA_FOLDER / "entities.json")
        chosen = choose_names(entities, LayerGridConfig(mode="comprehensive", source_prompt="Albert Einstein"))
        assert len(chosen.several) >= 12
        assert {source.entity.popularity for source in chosen.several} == {"well_known"}
        assert len(chosen.others) == LayerGridConfig.n_others
        assert chosen == choose_names(entities, LayerGridConfig(mode="comprehensive", source_prompt="Albert Einstein"))


class TestTemplates:
    def test_by_mode(self):
        for mode, expected in (
            ("quick", TEMPLATES[:1]),
            ("targeted", TEMPLATES[:1]),
            ("multi", TEMPLATES[:1]),
            ("templates", TEMPLATES),
            ("comprehensive", TEMPLATES),
        ):
            assert choose_templates(TEMPLATES, LayerGridConfig(mode=mode, template="identity")) == expected
        config = LayerGridConfig(mode="patchscope", template_type="minimal")
        assert choose_templates(TEMPLATES, config) == TEMPLATES[1:3]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "fast"}, "no mode is called 'fast'; choose from quick, targeted"),
            ({"mode": "patchscope"}, "say which with --template-type"),
            ({"mode": "patchscope", "template_type": "few_shot"}, "no template is of the family 'few_shot'"),
            ({"template": "magic"}, "there is no template 'magic'"),
        ],
    )
    def test_mistakes(self, options, message):
        with pytest.raises(PatchscopesError, match=message):
            choose_templates(TEMPLATES, LayerGridConfig(**options))
