"""Flax modules over the attention functions, and adapters to Flax's own attention modules."""

from attnjax.nn.adapter import as_attention_fn
from attnjax.nn.attention import Attention, HeadGate

__all__ = ["Attention", "HeadGate", "as_attention_fn"]
