"""Temporary."""

from patchscopes.plots.all import plot_cross_model as plot_cross_model
