"""Temporary."""

from patchscopes.plots.all import plot_future_lens as plot_future_lens
