"""Which keys a decoder keeps, or reads: sinks, windows, votes, and the top of scores."""

from attnjax.op import gather
from attnjax.ops.kv_decode.adaptive_heads import (
    KeyMoments,
    adaptive_head_attention,
    key_moments,
    near_share,
)
from attnjax.ops.kv_decode.frame_positions import frame_positions, turned_frames
from attnjax.ops.kv_decode.kinetics import (
    Costs,
    Generation,
    block_costs,
    block_top_k_attention,
    dense_costs,
)
from attnjax.ops.kv_decode.loki import key_basis, loki_attention
from attnjax.ops.kv_decode.paged import cascade_attention, paged_attention
from attnjax.ops.kv_decode.round_attention import chosen_rounds, round_attention, round_mass
from attnjax.ops.kv_decode.slim import slim_attention, slim_decoding_attention, value_map
from attnjax.ops.kv_decode.snapkv import mean_of_neighbors, peak_of_neighbors, snapkv
from attnjax.ops.kv_decode.streaming_cache import StreamingCache, streaming_attention
from attnjax.ops.kv_decode.streaming_llm import sink_window_attention
from attnjax.ops.kv_decode.streaming_vlm import streaming_vlm
from attnjax.ops.kv_decode.tidal import tidal_attention
from attnjax.ops.kv_decode.visual_exit import ExitRouter, exit_logits, may_exit

OPS = gather(globals())
