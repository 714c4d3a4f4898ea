"""How many heads there are, what they share, and which of them work."""

from attnjax.op import gather
from attnjax.ops.multihead_structure.capsules import capsule_attention
from attnjax.ops.multihead_structure.cascaded_group import cascaded_group_attention
from attnjax.ops.multihead_structure.collapsed import collapsed_attention, symmetric_weights
from attnjax.ops.multihead_structure.decoupled import decoupled_target_attention
from attnjax.ops.multihead_structure.diff_qkv import diff_qkv_attention
from attnjax.ops.multihead_structure.head_tokens import dynamic_aggregation, head_token_attention
from attnjax.ops.multihead_structure.label_attention import label_attention
from attnjax.ops.multihead_structure.lama import lama_pool
from attnjax.ops.multihead_structure.map_residual import map_residual_attention
from attnjax.ops.multihead_structure.modality import modality_expert_attention
from attnjax.ops.multihead_structure.moh import (
    mixture_of_heads,
    moh_balance_loss,
    moh_gates,
    moh_norm_gates,
    route,
)
from attnjax.ops.multihead_structure.opamp import opamp_attention
from attnjax.ops.multihead_structure.partial_head import partial_head_attention
from attnjax.ops.multihead_structure.routing_tokens import attention_aware_routing
from attnjax.ops.multihead_structure.single_headed import boom, single_headed_attention
from attnjax.ops.multihead_structure.skim import layout_embedding, skimmed_attention
from attnjax.ops.multihead_structure.specialized import (
    head_usage,
    likeliest_gates,
    most_used,
    specialized_heads,
)
from attnjax.ops.multihead_structure.super_attention import (
    slices,
    super_attention,
    super_attention_causal,
)
from attnjax.ops.multihead_structure.two_level import two_level_attention
from attnjax.ops.multihead_structure.weighted_gqa import fold_heads, weighted_gqa

OPS = gather(globals())
