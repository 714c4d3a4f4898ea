"""Attention to what is chosen by content: blocks of keys, clusters, buckets."""

from attnjax.op import gather
from attnjax.ops.sparse_select.all_to_key import distributed_attention, progressive_attention
from attnjax.ops.sparse_select.biformer import bi_level_routing_attention
from attnjax.ops.sparse_select.block_attention import assemble, block_attention, reindex
from attnjax.ops.sparse_select.cogvla import kept_shares, routed_layer, vla_coupled_attention
from attnjax.ops.sparse_select.combiner import combiner_dyadic, combiner_fixed
from attnjax.ops.sparse_select.combiner_axial import (
    axial_summaries,
    combiner_axial,
    combiner_both,
)
from attnjax.ops.sparse_select.delta import delta_attention
from attnjax.ops.sparse_select.dsa import (
    deepseek_sparse_attention,
    index_scores,
    indexer_loss,
)
from attnjax.ops.sparse_select.dynamic_mask import dynamic_mask_attention
from attnjax.ops.sparse_select.flexprefill import (
    flexprefill,
    flexprefill_selection,
    lines_of_blocks,
    lines_of_tokens,
)
from attnjax.ops.sparse_select.flexprefill_by_query import flexprefill_by_query
from attnjax.ops.sparse_select.fusion import (
    fuse_tokens,
    fusion_groups,
    size_bias,
    token_mass,
)
from attnjax.ops.sparse_select.fusion_loss import fusion_consistency_loss
from attnjax.ops.sparse_select.hip import hip_attention, hip_blocks
from attnjax.ops.sparse_select.hyper import hyper_attention
from attnjax.ops.sparse_select.hyper_causal import hyper_attention_causal
from attnjax.ops.sparse_select.ia_red import kept_tokens, reduced_attention, token_importance
from attnjax.ops.sparse_select.landmark import (
    gated_by_landmarks,
    insert_landmarks,
    landmark_attention,
    remove_landmarks,
)
from attnjax.ops.sparse_select.landmark_retrieval import landmark_retrieval
from attnjax.ops.sparse_select.longheads import (
    LongHeadsCache,
    empty_cache,
    longheads,
    longheads_chunks,
    longheads_step,
)
from attnjax.ops.sparse_select.lsg import (
    largest_keys,
    lsg_attention,
    strided_keys,
    strided_parts,
)
from attnjax.ops.sparse_select.magnifier import looks_at, magnifier_attention
from attnjax.ops.sparse_select.moba import moba, moba_blocks
from attnjax.ops.sparse_select.nsa import Branches, native_sparse_attention, nsa_blocks
from attnjax.ops.sparse_select.quota import (
    capped_quotas,
    even_tokens,
    quota_grid,
    resampled,
    token_quotas,
)
from attnjax.ops.sparse_select.rettention import measure_rest, rettention
from attnjax.ops.sparse_select.route import Routed, mixture_of_depths, route
from attnjax.ops.sparse_select.routing import routing_attention, update_centroids
from attnjax.ops.sparse_select.routing_causal import routing_causal
from attnjax.ops.sparse_select.s2 import s2_attention, s2_blocks
from attnjax.ops.sparse_select.s2_cache import s2_kept
from attnjax.ops.sparse_select.sea import sea_attention, sea_kept
from attnjax.ops.sparse_select.seer import (
    seer_attention,
    seer_blocks,
    seer_gate,
    seer_loss,
    seer_r_attention,
)
from attnjax.ops.sparse_select.sparsifiner import Predictor, predicted_map, sparsifiner
from attnjax.ops.sparse_select.sparsifiner_training import (
    most_looked_at,
    phase_at,
    reconstruction_loss,
)
from attnjax.ops.sparse_select.spatial import Cells, grid_of, spatial_sparse_attention
from attnjax.ops.sparse_select.threshold_relative import (
    threshold_forgetting_attention,
    threshold_relative_attention,
)
from attnjax.ops.sparse_select.vmoba import (
    vmoba,
    vmoba_block,
    vmoba_by_head,
    vmoba_by_query,
    vmoba_top_k,
)
from attnjax.ops.sparse_select.yoso import yoso, yoso_sampled

OPS = gather(globals())
