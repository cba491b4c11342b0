"""Patchscopes (Ghandeharioun et al., ICML 2024): let a language model say what its hidden states hold."""

__version__ = "0.1.0"
