"""Temporary."""

from patchscopes.plots.all import plot_entity as plot_entity
