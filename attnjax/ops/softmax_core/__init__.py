"""Softmax attention, its scores, and what may stand in the place of its softmax."""

from attnjax.op import gather
from attnjax.ops.softmax_core.adaptive_entmax import alpha_of, entmax_attention
from attnjax.ops.softmax_core.anchors import column_attention
from attnjax.ops.softmax_core.clipped_softmax import clipped_softmax_attention, gated_attention
from attnjax.ops.softmax_core.cog import cog_attention
from attnjax.ops.softmax_core.compositional import compositional_attention
from attnjax.ops.softmax_core.entity_aware import entity_aware_attention
from attnjax.ops.softmax_core.forgetting import forgetting_attention
from attnjax.ops.softmax_core.gated_cross import CrossWeights, gated_cross_attention_unit
from attnjax.ops.softmax_core.hard import (
    average_hard_attention,
    leftmost_hard_attention,
    rightmost_hard_attention,
)
from attnjax.ops.softmax_core.local_regression import local_regression_attention
from attnjax.ops.softmax_core.luong import luong_concat, luong_dot, luong_general, luong_location
from attnjax.ops.softmax_core.luong_local import luong_local_monotonic, luong_local_predictive
from attnjax.ops.softmax_core.monotonic import (
    monotonic_alignment,
    monotonic_attention,
    monotonic_chunkwise_attention,
)
from attnjax.ops.softmax_core.multi_head import multi_head_attention, sinusoidal_positions
from attnjax.ops.softmax_core.multi_token import (
    multi_token_attention,
    multi_token_attention_full,
)
from attnjax.ops.softmax_core.normalized import normalized_attention, standardized
from attnjax.ops.softmax_core.pointer import pointer_attention, unused
from attnjax.ops.softmax_core.pool import additive_pool, attention_pool, dynamic_self_attention
from attnjax.ops.softmax_core.prefix import prefix_attention
from attnjax.ops.softmax_core.rectified_linear import rela, rela_gated
from attnjax.ops.softmax_core.sage import (
    quantized_fp4,
    quantized_int8,
    sage3_attention,
    sage_attention,
)
from attnjax.ops.softmax_core.selective import selection, selective_attention
from attnjax.ops.softmax_core.selective_cache import selective_kept, selective_memory_loss
from attnjax.ops.softmax_core.selective_self import position_temperature, selective_self_attention
from attnjax.ops.softmax_core.sinkhorn import (
    multi_prompt_score_map,
    multi_prompt_sinkhorn_attention,
    sinkhorn_attention,
)
from attnjax.ops.softmax_core.softpick import softpick_attention
from attnjax.ops.softmax_core.softplus import softplus_attention, softplus_reweighted
from attnjax.ops.softmax_core.stick_breaking import stick_breaking_attention

OPS = gather(globals())
