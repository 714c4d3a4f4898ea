"""Flax modules over the attention functions, and adapters to Flax's own attention modules."""

from attnjax.nn import recipes
from attnjax.nn.adapter import as_attention_fn
from attnjax.nn.attention import Attention, HeadGate
from attnjax.nn.recurrent import Cache, Gate, Recipe, Recurrent

__all__ = [
    "Attention",
    "Cache",
    "Gate",
    "HeadGate",
    "Recipe",
    "Recurrent",
    "as_attention_fn",
    "recipes",
]
