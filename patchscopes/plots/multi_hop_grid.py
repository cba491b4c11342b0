"""Temporary."""

from patchscopes.plots.all import plot_multi_hop_grid as plot_multi_hop_grid
