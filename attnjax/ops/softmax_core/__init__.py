"""Softmax attention, its scores, and what may stand in the place of its softmax."""

from attnjax.ops.softmax_core.clipped_softmax import VARIANTS as CLIPPED_SOFTMAX
from attnjax.ops.softmax_core.clipped_softmax import clipped_softmax_attention, gated_attention
from attnjax.ops.softmax_core.cog import VARIANT as COG
from attnjax.ops.softmax_core.cog import cog_attention
from attnjax.ops.softmax_core.forgetting import VARIANT as FORGETTING
from attnjax.ops.softmax_core.forgetting import forgetting_attention
from attnjax.ops.softmax_core.luong import VARIANTS as LUONG
from attnjax.ops.softmax_core.luong import luong_concat, luong_dot, luong_general, luong_location
from attnjax.ops.softmax_core.luong_local import VARIANTS as LUONG_LOCAL
from attnjax.ops.softmax_core.luong_local import luong_local_monotonic, luong_local_predictive
from attnjax.ops.softmax_core.multi_head import VARIANT as MULTI_HEAD
from attnjax.ops.softmax_core.multi_head import multi_head_attention, sinusoidal_positions
from attnjax.ops.softmax_core.pointer import VARIANT as POINTER
from attnjax.ops.softmax_core.pointer import pointer_attention, unused
from attnjax.ops.softmax_core.rectified_linear import VARIANTS as RECTIFIED_LINEAR
from attnjax.ops.softmax_core.rectified_linear import rela, rela_gated
from attnjax.ops.softmax_core.selective import VARIANT as SELECTIVE
from attnjax.ops.softmax_core.selective import selection, selective_attention
from attnjax.ops.softmax_core.softpick import VARIANT as SOFTPICK
from attnjax.ops.softmax_core.softpick import softpick_attention
from attnjax.ops.softmax_core.softplus import VARIANT as SOFTPLUS
from attnjax.ops.softmax_core.softplus import softplus_attention

VARIANTS = (
    MULTI_HEAD,
    *LUONG,
    *LUONG_LOCAL,
    POINTER,
    FORGETTING,
    SELECTIVE,
    *CLIPPED_SOFTMAX,
    SOFTPICK,
    *RECTIFIED_LINEAR,
    COG,
    SOFTPLUS,
)

__all__ = [
    "VARIANTS",
    "clipped_softmax_attention",
    "cog_attention",
    "forgetting_attention",
    "gated_attention",
    "luong_concat",
    "luong_dot",
    "luong_general",
    "luong_local_monotonic",
    "luong_local_predictive",
    "luong_location",
    "multi_head_attention",
    "pointer_attention",
    "rela",
    "rela_gated",
    "selection",
    "selective_attention",
    "sinusoidal_positions",
    "softpick_attention",
    "softplus_attention",
    "unused",
]
