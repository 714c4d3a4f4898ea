"""How attention learns where tokens stand."""

from attnjax.op import gather
from attnjax.ops.position.disentangled import disentangled_as_printed, disentangled_attention
from attnjax.ops.position.dual_triangle import dual_triangle_attention
from attnjax.ops.position.shaw import shaw_relative_attention

OPS = gather(globals())
