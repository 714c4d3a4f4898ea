"""One float64 NumPy function per leaf, named as the leaf, written from the paper's formula."""

from collections.abc import Callable

from tests.oracles.kv_decode import sink_window_attention
from tests.oracles.local_structured import neighborhood_attention
from tests.oracles.position import (
    disentangled_attention,
    dual_triangle_attention,
    shaw_relative_attention,
)
from tests.oracles.softmax_core import (
    clipped_softmax_attention,
    cog_attention,
    forgetting_attention,
    gated_attention,
    luong_concat,
    luong_dot,
    luong_general,
    luong_local_monotonic,
    luong_local_predictive,
    luong_location,
    multi_head_attention,
    pointer_attention,
    rela,
    rela_gated,
    selective_attention,
    softpick_attention,
    softplus_attention,
)

ORACLES: dict[str, Callable] = {
    oracle.__name__: oracle
    for oracle in (
        clipped_softmax_attention,
        cog_attention,
        disentangled_attention,
        dual_triangle_attention,
        forgetting_attention,
        gated_attention,
        luong_concat,
        luong_dot,
        luong_general,
        luong_local_monotonic,
        luong_local_predictive,
        luong_location,
        multi_head_attention,
        neighborhood_attention,
        pointer_attention,
        rela,
        rela_gated,
        selective_attention,
        shaw_relative_attention,
        sink_window_attention,
        softpick_attention,
        softplus_attention,
    )
}
