"""What a method is: its nine fields as the paper has them, original and as a Patchscope, and what each shows."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import streamlit as st

from patchscopes.tutorial import work
from patchscopes.tutorial.showing import show_table

if TYPE_CHECKING:
    from patchscopes.patchscope import Patchscope

NONE = "—"
SYMBOLS = ("S", "i", "M", "ℓ", "T", "i*", "f", "M*", "ℓ*")


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The nine choices, each as a short text; `NONE` for one that a method does not have.

    Attributes: as those of `Patchscope`, in the order of the paper's table.
    """

    source_prompt: str = "as chosen"
    source_position: str = "as chosen"
    model: str = "as chosen"
    source_layers: str = "each"
    target_prompt: str = NONE
    target_position: str = NONE
    mapping: str = NONE
    target_model: str = NONE
    target_layers: str = NONE

    @classmethod
    def of(cls, patchscope: "Patchscope") -> "Fields":
        """Those of a Patchscope, as it describes itself."""
        return cls(
            **dict(
                zip((field.name for field in fields(cls)), (value for _, value in patchscope.describe()), strict=True)
            )
        )

    def list_texts(self) -> list[str]:
        """The nine texts in order."""
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of a page.

    Attributes:
        key: its name in result files.
        name: its name in the field.
        idea: what it does, in one or two sentences (Markdown).
        original, patchscope: the nine choices in its own form and as a Patchscope; None where there is no such form.
        differs: the measured difference of the two, or why there is only one (Markdown).
        code: Python that does the same with what the reader has chosen, and prints something.
        paper: what the paper, or the method's own, found, and where it says so (Markdown).
        here: what the embedded model shows, with numbers of a committed result file (Markdown).
        source: who proposed it.
    """

    key: str
    name: str
    idea: str
    original: Fields | None
    patchscope: Fields | None
    differs: str
    code: str
    paper: str
    here: str
    source: str


def draw_methods(methods: Sequence[Method], *, page: str) -> None:
    """The methods of a page, of which the reader opens one at a time.

    Args:
        page: the name of the page, for the input's own name.
    """
    st.subheader("The methods", anchor="methods")
    by_key = {method.key: method for method in methods}
    chosen = st.pills(
        "Open a method",
        list(by_key),
        format_func=lambda key: by_key[key].name,
        default=methods[0].key,
        required=True,
        key=f"{page} method",
        persist_state="session",
    )
    draw_method(by_key[chosen])


def draw_methods_of(
    key: Hashable, build: Callable[[], list[Method]], otherwise: Callable[[], list[Method]], *, page: str
) -> None:
    """The methods of a page, described with what the reader has chosen, for which the model is asked.

    Args:
        key: what they depend on, for `work.run`.
        otherwise: gives them in general, where what is chosen cannot be.
    """
    methods = work.run("Describing the methods", (page, key), lambda _: build())
    draw_methods(otherwise() if methods is None else methods, page=page)


def draw_method(method: Method) -> None:
    """One method: idea, nine fields, difference, findings, code."""
    with st.container(border=True):
        st.markdown(f"#### {method.name}")
        st.markdown(method.idea)
        show_table(_tabulate_fields(method), alt=f"The nine choices of {method.name}", height=None)
        st.markdown(f"**Measured.** {method.differs}")
        left, right = st.columns(2)
        left.markdown(f"**The papers.** {method.paper}")
        right.markdown(f"**The embedded model.** {method.here}")
        st.markdown("**The same in Python:**")
        st.code(inspect.cleandoc(method.code), language="python", wrap_lines=True)
        st.caption(method.source)


def _tabulate_fields(method: Method) -> list[dict[str, str]]:
    columns = {"Original": method.original, "As a Patchscope": method.patchscope}
    texts = {title: of.list_texts() for title, of in columns.items() if of is not None}
    return [
        {"": symbol, **{title: of_column[number] for title, of_column in texts.items()}}
        for number, symbol in enumerate(SYMBOLS)
    ]
