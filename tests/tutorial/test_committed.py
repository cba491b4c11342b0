"""Committed figures on pages."""

import io

import pytest
from PIL import Image

from patchscopes.tutorial import committed


@pytest.mark.parametrize("name", ["causal_tracing", "fig1"])
def test_is_the_picture_no_wider_than_it_is_shown(name):
    path = committed.FIGURES / f"{name}.png"
    with Image.open(path) as whole, Image.open(io.BytesIO(committed.read_picture(path))) as shown:
        assert shown.format == "PNG"
        assert shown.width == min(whole.width, committed.WIDEST)
        assert shown.height / shown.width == pytest.approx(whole.height / whole.width, rel=0.01)


def test_results_that_are_not_there():
    assert committed.load("no_such_figure") is None
