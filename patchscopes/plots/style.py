"""Temporary."""

from patchscopes.plots.all import save_png as save_png
