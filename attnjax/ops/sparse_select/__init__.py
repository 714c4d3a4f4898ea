"""Attention to what is chosen by content: blocks of keys, clusters, buckets."""

from attnjax.ops.sparse_select.biformer import VARIANT as BIFORMER
from attnjax.ops.sparse_select.biformer import bi_level_routing_attention
from attnjax.ops.sparse_select.block_attention import VARIANT as BLOCK_ATTENTION
from attnjax.ops.sparse_select.block_attention import assemble, block_attention, reindex
from attnjax.ops.sparse_select.delta import VARIANT as DELTA
from attnjax.ops.sparse_select.delta import delta_attention
from attnjax.ops.sparse_select.dynamic_mask import VARIANT as DYNAMIC_MASK
from attnjax.ops.sparse_select.dynamic_mask import dynamic_mask_attention
from attnjax.ops.sparse_select.flexprefill import VARIANT as FLEXPREFILL
from attnjax.ops.sparse_select.flexprefill import flexprefill, flexprefill_selection
from attnjax.ops.sparse_select.flexprefill_by_query import VARIANT as FLEXPREFILL_BY_QUERY
from attnjax.ops.sparse_select.flexprefill_by_query import flexprefill_by_query
from attnjax.ops.sparse_select.hyper import VARIANT as HYPER
from attnjax.ops.sparse_select.hyper import hyper_attention
from attnjax.ops.sparse_select.hyper_causal import VARIANT as HYPER_CAUSAL
from attnjax.ops.sparse_select.hyper_causal import hyper_attention_causal
from attnjax.ops.sparse_select.landmark import VARIANT as LANDMARK
from attnjax.ops.sparse_select.landmark import (
    gated_by_landmarks,
    insert_landmarks,
    landmark_attention,
    remove_landmarks,
)
from attnjax.ops.sparse_select.landmark_retrieval import VARIANT as LANDMARK_RETRIEVAL
from attnjax.ops.sparse_select.landmark_retrieval import landmark_retrieval
from attnjax.ops.sparse_select.moba import VARIANT as MOBA
from attnjax.ops.sparse_select.moba import moba, moba_blocks
from attnjax.ops.sparse_select.nsa import VARIANT as NSA
from attnjax.ops.sparse_select.nsa import Branches, native_sparse_attention, nsa_blocks
from attnjax.ops.sparse_select.routing import VARIANT as ROUTING
from attnjax.ops.sparse_select.routing import routing_attention, update_centroids
from attnjax.ops.sparse_select.routing_causal import VARIANT as ROUTING_CAUSAL
from attnjax.ops.sparse_select.routing_causal import routing_causal
from attnjax.ops.sparse_select.seer import VARIANT as SEER
from attnjax.ops.sparse_select.seer import seer_attention, seer_gate
from attnjax.ops.sparse_select.vmoba import VARIANT as VMOBA
from attnjax.ops.sparse_select.vmoba import vmoba, vmoba_block

VARIANTS = (
    BIFORMER,
    DYNAMIC_MASK,
    FLEXPREFILL,
    FLEXPREFILL_BY_QUERY,
    MOBA,
    NSA,
    ROUTING,
    ROUTING_CAUSAL,
    SEER,
    VMOBA,
    HYPER,
    HYPER_CAUSAL,
    LANDMARK,
    LANDMARK_RETRIEVAL,
    BLOCK_ATTENTION,
    DELTA,
)

__all__ = [
    "Branches",
    "VARIANTS",
    "assemble",
    "bi_level_routing_attention",
    "block_attention",
    "delta_attention",
    "dynamic_mask_attention",
    "flexprefill",
    "flexprefill_by_query",
    "flexprefill_selection",
    "gated_by_landmarks",
    "hyper_attention",
    "hyper_attention_causal",
    "insert_landmarks",
    "landmark_attention",
    "landmark_retrieval",
    "moba",
    "moba_blocks",
    "native_sparse_attention",
    "nsa_blocks",
    "reindex",
    "remove_landmarks",
    "routing_attention",
    "routing_causal",
    "seer_attention",
    "seer_gate",
    "update_centroids",
    "vmoba",
    "vmoba_block",
]
