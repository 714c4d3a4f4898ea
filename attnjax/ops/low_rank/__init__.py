"""Attention through fewer vectors than there are tokens."""

from attnjax.ops.low_rank.agent import VARIANT as AGENT
from attnjax.ops.low_rank.agent import agent_attention, place_bias
from attnjax.ops.low_rank.linformer import VARIANT as LINFORMER
from attnjax.ops.low_rank.linformer import linformer, mean_pool_projection
from attnjax.ops.low_rank.perceiver import VARIANT as PERCEIVER
from attnjax.ops.low_rank.perceiver import fourier_features, perceiver_attention

VARIANTS = (LINFORMER, AGENT, PERCEIVER)

__all__ = [
    "VARIANTS",
    "agent_attention",
    "fourier_features",
    "linformer",
    "mean_pool_projection",
    "perceiver_attention",
    "place_bias",
]
