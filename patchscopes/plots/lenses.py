"""Temporary."""

from patchscopes.plots.all import plot_lenses as plot_lenses
