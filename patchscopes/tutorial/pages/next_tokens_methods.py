"""What the methods of the page on next tokens are, and what they show: the paper's words beside committed numbers."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patchscopes.learned.config import FIXED_PROMPT
from patchscopes.prompts import PLACEHOLDER, SIMPLESCOPE_PROMPT, build_token_identity_prompt
from patchscopes.results import Json
from patchscopes.tutorial.committed import quote
from patchscopes.tutorial.methods import NONE, Fields, Method
from patchscopes.tutorial.pages.next_tokens_code import write_affine_code, write_code, write_prompt_code
from patchscopes.tutorial.pages.next_tokens_findings import (
    PAPER_ON_FIGURE_2,
    describe_control,
    describe_difference,
    describe_later_tokens,
    describe_overtaking,
    describe_precision,
)
from patchscopes.tutorial.state import Choice

if TYPE_CHECKING:
    from patchscopes.model.lens_model import LensModel

IN_SOURCE = Fields(
    target_prompt="S, up to i", target_position="i", mapping="identity", target_model="M", target_layers="last"
)


def build_methods(choice: Choice | None, model: "LensModel | None", results: Json | None) -> list[Method]:
    """The methods of the page.

    Args:
        choice, model: None while there are none: then their code is about the start page's example.
        results: of the reader's own example, if there are any.
    """
    in_source = describe_in_source(choice, model)
    unembedded = replace(
        in_source,
        target_prompt=NONE,
        target_position=NONE,
        mapping="identity, then unembedding",
        target_model=NONE,
        target_layers=NONE,
    )
    fixed_prompt = describe_in_prompt(choice, model, FIXED_PROMPT, None)
    return [
        Method(
            key="logit_lens",
            name="Logit Lens",
            idea="Take the state of a middle layer and treat it as if it were the last one's: final norm, then "
            "unembedding. What the model *would* say if it stopped here.",
            original=unembedded,
            patchscope=in_source,
            differs=describe_difference("logit_lens", results),
            code=write_code(choice, "LogitLens"),
            paper="Appendix A, Table 4: T = S, i* = i, ℓ* = the last layer, f = identity. Section 4.1: poor "
            "in the first ten layers, and behind token identity in all later ones.",
            here=quote("fig2", lambda of: describe_precision(of, "logit_lens")),
            source="nostalgebraist, LessWrong 2020.",
        ),
        Method(
            key="tuned_lens",
            name="Tuned Lens",
            idea="The same after an affine map f(h) = A h + b, one for each layer, learned on other texts so that it "
            "brings a state to where the last layer's would be.",
            original=replace(unembedded, mapping="A h + b of layer ℓ, then unembedding"),
            patchscope=replace(in_source, mapping="A h + b of layer ℓ"),
            differs=describe_difference("tuned_lens", results),
            code=write_affine_code(choice, "cached_fits", "fit_or_load_affine_maps", takes="about a minute"),
            paper="Table 4: as the Logit Lens, with an affine f. Section 4.1: slightly better than the others in the "
            "first ten layers, behind token identity in all later ones. It is fitted by least squares there too.",
            here=quote("fig2", lambda of: describe_precision(of, "tuned_lens")),
            source="Belrose et al. 2023, arXiv:2303.08112; by least squares, Din et al. 2023, arXiv:2303.09435.",
        ),
        Method(
            key="linear",
            name="Future Lens: linear",
            idea="Affine maps again, but to the state that the last layer will have one or two tokens *later*: what "
            "does this state know of tokens after the next one?",
            original=replace(unembedded, mapping="A h + b to the state of a later token, then unembedding"),
            patchscope=replace(in_source, mapping="A h + b to the state of a later token"),
            differs=describe_difference("linear", results),
            code=write_affine_code(
                choice,
                "cached_fits",
                "fit_or_load_affine_maps",
                takes="about two minutes",
                fitted=", ahead=(0, 1, 2)",
                chosen=", ahead=1",
            ),
            paper="Table 4: ℓ\\* = ℓ, with a linear f, or a fixed or learned T. The maps here go to the last layer, "
            "hence ℓ\\* = last. Pal et al. (GPT-J 6B): a learned prompt names later tokens more often; so it is here.",
            here=quote("future_lens", lambda of: describe_later_tokens(of, "linear")),
            source="Pal et al., CoNLL 2023, arXiv:2311.04897.",
        ),
        Method(
            key="fixed_prompt",
            name="Future Lens: a prompt",
            idea="Write the state over the last token of a text that has nothing to do with S, and let the model go "
            "on. The text is fixed, or replaced by ten vectors that are trained to bring out what the state holds.",
            original=fixed_prompt,
            patchscope=fixed_prompt,
            differs="Already a Patchscope: the original runs the whole prompt with plain hooks, the other one on "
            "the fast "
            f"engine. {describe_difference('fixed_prompt', results)}",
            code=write_prompt_code(choice, FIXED_PROMPT, None),
            paper="Section 3.2: a Patchscope with M\\* = M and ℓ\\* = ℓ. Pal et al. (GPT-J 6B): with a learned prompt "
            "later tokens are named in more than 48% of cases at some layers; fewer here.",
            here=quote("future_lens", lambda of: describe_later_tokens(of, "learned_prompt", "fixed_prompt")),
            source="Pal et al., CoNLL 2023, arXiv:2311.04897.",
        ),
        Method(
            key="token_identity",
            name="Token identity",
            idea="The paper's own: a prompt in which words are repeated, and at its end a gap. The model, which "
            "expects one more repetition, goes on with what it finds in the gap, in its own words; nothing is learned.",
            original=None,
            patchscope=describe_in_prompt(choice, model, build_token_identity_prompt(), PLACEHOLDER),
            differs=describe_control("token_identity", results),
            code=write_prompt_code(choice, build_token_identity_prompt(), PLACEHOLDER),
            paper=PAPER_ON_FIGURE_2,
            here=quote("fig2", lambda of: describe_overtaking(of, "token_identity")),
            source="Ghandeharioun et al., ICML 2024, arXiv:2401.06102, sections 3 and 4.1.",
        ),
        Method(
            key="simplescope",
            name="Simplescope",
            idea="The simplest prompt there is: nothing but the gap. Nothing suggests to the model what to do with the "
            "state, so it just goes on from it.",
            original=None,
            patchscope=describe_in_prompt(choice, model, SIMPLESCOPE_PROMPT, PLACEHOLDER),
            differs=describe_control("simplescope", results),
            code=write_prompt_code(choice, SIMPLESCOPE_PROMPT, PLACEHOLDER),
            paper="Not in the paper, which uses token identity for this task.",
            here=quote("fig2", lambda of: describe_overtaking(of, "simplescope")),
            source="A target prompt like any other of Ghandeharioun et al., ICML 2024, reduced to its placeholder.",
        ),
        Method(
            key="jacobian_lens",
            name="Jacobian Lens",
            idea="f(h) = J h, where J says how the last layer's states, at this and all later tokens, move when this "
            "state moves a little: the mean Jacobian over some texts.",
            original=replace(unembedded, mapping="J h of layer ℓ, then unembedding"),
            patchscope=replace(in_source, mapping="J h of layer ℓ"),
            differs=describe_difference("jacobian_lens", results),
            code=write_affine_code(choice, "jacobian_lens", "fit_jacobian_lens", takes="about nine minutes"),
            paper="Newer than the paper. It is made for what a model may say at this or any later token, not for the "
            "next token alone.",
            here="It is fitted for minutes, so it is not in the committed figures. In the table under Figure 2 of "
            "figures/README.md it reads the next token worse than the Logit Lens, and better once it is centred on the "
            "mean state.",
            source="Gurnee et al., Verbalizable Representations Form a Global Workspace in Language Models, "
            "Transformer Circuits 2026.",
        ),
    ]


def describe_patchscope(choice: Choice | None, model: "LensModel | None", otherwise: Fields, **options: Any) -> Fields:
    """The nine fields of a Patchscope with the reader's S, i and ℓ; without a model, in general."""
    if choice is None or model is None:
        return otherwise
    from patchscopes.patchscope import Patchscope

    return Fields.of(
        Patchscope(
            model=model,
            source_prompt=choice.source_prompt,
            source_position=choice.source_position,
            source_layers=choice.layers,
            **options,
        )
    )


def describe_in_prompt(
    choice: Choice | None, model: "LensModel | None", target_prompt: str, placeholder: str | None
) -> Fields:
    """The nine fields of a Patchscope with ℓ* = ℓ and a target prompt of its own."""
    otherwise = replace(
        IN_SOURCE,
        target_prompt=target_prompt,
        target_position="last token" if placeholder is None else f"the last {placeholder}",
        target_layers="same",
    )
    return describe_patchscope(choice, model, otherwise, target_prompt=target_prompt, target_position=placeholder)


def describe_in_source(choice: Choice | None, model: "LensModel | None") -> Fields:
    """The nine fields of the Logit Lens: T = S up to i, since what comes after i has no part in the answer."""
    if choice is None or model is None:
        return IN_SOURCE
    from patchscopes.tokens import to_token_ids

    up_to_i = to_token_ids(model, choice.source_prompt)[: choice.source_position + 1]
    return describe_patchscope(choice, model, IN_SOURCE, target_prompt=up_to_i, target_layers="last")
