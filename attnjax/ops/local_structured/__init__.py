"""Attention to the neighbors on a line or a grid."""

from attnjax.op import gather
from attnjax.ops.local_structured.aggregated import aggregated_attention
from attnjax.ops.local_structured.area import area_attention
from attnjax.ops.local_structured.axial import axial_attention
from attnjax.ops.local_structured.contmix import contmix
from attnjax.ops.local_structured.grids import window_attention
from attnjax.ops.local_structured.halo import halo_attention
from attnjax.ops.local_structured.hilo import hilo_attention
from attnjax.ops.local_structured.interactive import interactive_attention
from attnjax.ops.local_structured.inward import inward_window_attention
from attnjax.ops.local_structured.local_additive import local_additive_attention
from attnjax.ops.local_structured.localized_filter import localized_filter
from attnjax.ops.local_structured.multi_scale_window import multi_scale_window_attention
from attnjax.ops.local_structured.neighborhood import neighborhood_attention
from attnjax.ops.local_structured.sphere import spherical_attention
from attnjax.ops.local_structured.subsampled import subsampled_attention
from attnjax.ops.local_structured.tiles import (
    in_tiles,
    row_visits,
    tiled_neighborhood_attention,
    tiles_of,
    visits,
)
from attnjax.ops.local_structured.warmup import warmup_attention
from attnjax.ops.local_structured.window_cosine import window_cosine_attention

OPS = gather(globals())
