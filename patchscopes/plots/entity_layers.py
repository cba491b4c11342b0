"""Temporary."""

from patchscopes.plots.all import plot_entity_layers as plot_entity_layers
