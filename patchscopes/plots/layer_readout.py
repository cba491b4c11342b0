"""Temporary."""

from patchscopes.plots.all import plot_layer_readout as plot_layer_readout
