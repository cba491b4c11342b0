"""Temporary."""

from patchscopes.plots.all import plot_next_token as plot_next_token
