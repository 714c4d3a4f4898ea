"""Attention through fewer vectors than there are tokens."""

VARIANTS = ()

__all__ = ["VARIANTS"]
