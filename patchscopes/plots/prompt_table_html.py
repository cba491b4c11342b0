"""The table of a prompt as HTML, which a notebook shows."""

import html
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex

from patchscopes.model.layer_names import name_layer
from patchscopes.plots.prompt_table import COLOR_SCALES, OWN, iterate_tokens, make_shade, name_lens, stack_values
from patchscopes.plots.tables import choose_ink
from patchscopes.plots.text import format_significant, shorten, show_whitespace
from patchscopes.results import Json

CELL_CHARACTERS = 24
# Only cells have colours, of their own and of their texts: around them those of the page are left, light or dark.
TABLE = "border-collapse:collapse;font-size:12px;width:auto"
CELL = "text-align:center;white-space:nowrap;padding:2px 6px"
BAR = "display:inline-block;width:8em;height:0.8em"


def render_prompt_table(results: Json, color: str, model_id: str) -> str:
    """The most likely next token at each token (from left to right) and layer (upwards), in one piece of HTML.

    Args:
        results: of the result file, as for `plot_prompt_table`.
        color: what the colours of cells stand for.
        model_id: the name of the model.
    """
    ((lens, read),) = results["methods"].items()
    shade = make_shade(read, color)
    colours = shade.to_rgba(stack_values(results, color))
    heads = "".join(
        f'<th scope="col" style="{CELL}">{position}<br>{render_text(token)}</th>'
        for position, token in iterate_tokens(results)
    )
    own = results["own"]
    own_notes = [f"probability {probability:.3f}" for probability in own["probability"]]
    rows = [
        render_row(OWN, own["top"], own_notes, colours[-1]),
        *(
            render_row(name_layer(layer), read["top"][row], describe_cells(read, row), colours[row])
            for row, layer in reversed(list(enumerate(results["layers"])))
        ),
    ]
    return (
        '<div style="overflow-x:auto">'
        f"<div><b>{html.escape(name_lens(lens))}</b>: the most likely next token after each token, at each layer, "
        f"{html.escape(model_id)}; first row: the model's own prediction</div>"
        f"<div>{html.escape(COLOR_SCALES[color].label)}: {render_bar(shade)}</div>"
        f'<table style="{TABLE}"><thead><tr><th scope="col" style="{CELL}">layer</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def render_bar(shade: ScalarMappable) -> str:
    """The colours between the least and the most, and both numbers."""
    stops = ",".join(to_hex(colour) for colour in shade.cmap(np.linspace(0, 1, 9)))
    numbers = [format_significant(float(number or 0.0)) for number in shade.get_clim()]
    return f'{numbers[0]} <span style="{BAR};background:linear-gradient(90deg,{stops})"></span> {numbers[1]}'


def render_row(
    heading: str, texts: Sequence[str], notes: Sequence[str], colours: Float[np.ndarray, "position rgba=4"]
) -> str:
    """A row of cells, each with a note that shows under the pointer."""
    cells = "".join(
        f'<td style="{CELL};background:{to_hex(colour)};color:{choose_ink(colour)}" title="{html.escape(note)}">'
        f"{render_text(text)}</td>"
        for text, note, colour in zip(texts, notes, colours, strict=True)
    )
    return f'<tr><th scope="row" style="{CELL}">{html.escape(heading)}</th>{cells}</tr>'


def describe_cells(read: Json, row: int) -> list[str]:
    """The numbers of each cell of a layer."""
    numbers = zip(read["probability"][row], read["rank"][row], read["kl"][row], strict=True)
    return [f"probability {probability:.3f}, rank {rank}, KL {kl:.3f}" for probability, rank, kl in numbers]


def render_text(text: str) -> str:
    """A token in one short line, whatever its signs, and whichever way its script runs."""
    return f"<bdi>{html.escape(shorten(show_whitespace(text), CELL_CHARACTERS))}</bdi>"
