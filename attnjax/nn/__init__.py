"""Flax modules over the attention functions, and adapters to Flax's own attention modules."""

from attnjax.nn import recipes
from attnjax.nn.adapter import as_attention_fn
from attnjax.nn.attention import Attention, HeadGate
from attnjax.nn.decoding import advance, begin
from attnjax.nn.gates import SeerGate, seer_loss
from attnjax.nn.graph import GraphLayer, GraphNet
from attnjax.nn.latents import Agents, Perceiver
from attnjax.nn.recurrent import Cache, Gate, Recipe, Recurrent
from attnjax.nn.sparse import NativeSparse, RunMLP
from attnjax.nn.windows import Windows, swin

__all__ = [
    "Agents",
    "Attention",
    "Cache",
    "Gate",
    "GraphLayer",
    "GraphNet",
    "HeadGate",
    "NativeSparse",
    "Perceiver",
    "Recipe",
    "Recurrent",
    "RunMLP",
    "SeerGate",
    "Windows",
    "advance",
    "as_attention_fn",
    "begin",
    "recipes",
    "seer_loss",
    "swin",
]
