"""How attention learns where tokens stand."""

from attnjax.op import gather
from attnjax.ops.position.adaptive_grid import adaptive_grid_positions, locality_feed_forward
from attnjax.ops.position.contextual import contextual_position_attention
from attnjax.ops.position.disentangled import disentangled_as_printed, disentangled_attention
from attnjax.ops.position.dual_triangle import dual_triangle_attention
from attnjax.ops.position.dynamic_convolution import (
    beta_binomial,
    dynamic_convolution_attention,
)
from attnjax.ops.position.fourier import (
    fourier_coefficients,
    fourier_position_attention,
    fourier_rates,
    fourier_rotary,
)
from attnjax.ops.position.gmm import gmm_attention
from attnjax.ops.position.gta import (
    geometric_transform_attention,
    image_angles,
    into_frame,
    into_query_frame,
    out_of_frame,
)
from attnjax.ops.position.multi_variate import multi_variate_parallel_attention
from attnjax.ops.position.object_pointer import gaussian_codes, object_pointer
from attnjax.ops.position.path import path_attention
from attnjax.ops.position.position_aware import position_aware_cross_attention
from attnjax.ops.position.ripo import music_embedding, ripo_attention
from attnjax.ops.position.rope_nope import hybrid_position_attention
from attnjax.ops.position.shaw import shaw_relative_attention

OPS = gather(globals())
