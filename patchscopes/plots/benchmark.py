"""Temporary."""

from patchscopes.plots.all import plot_benchmark as plot_benchmark
