"""Attention through fewer vectors than there are tokens."""

from attnjax.op import gather
from attnjax.ops.low_rank.agent import agent_attention, place_bias
from attnjax.ops.low_rank.dual_token import Maps, dual_token_mixer, fused_globals
from attnjax.ops.low_rank.dynamic_perceiver import CrossLayer, cross_layer, pooled_map
from attnjax.ops.low_rank.dynamic_perceiver_stage import (
    Transition,
    exit_at,
    exit_thresholds,
    latent_transition,
)
from attnjax.ops.low_rank.group import group_attention, key_groups
from attnjax.ops.low_rank.group_schedule import mergeable_groups, next_groups
from attnjax.ops.low_rank.latte import latte_attention
from attnjax.ops.low_rank.linformer import linformer, mean_pool_projection
from attnjax.ops.low_rank.mfa import Factorized, mfa, mfa_key_reuse
from attnjax.ops.low_rank.perceiver import fourier_features, perceiver_attention
from attnjax.ops.low_rank.ran import Recurrent, Review, memory_review, recurrent_attention

OPS = gather(globals())
