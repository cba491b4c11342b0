"""Temporary."""

from patchscopes.plots.all import plot_multi_hop as plot_multi_hop
