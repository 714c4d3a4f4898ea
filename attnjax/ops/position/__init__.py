"""How attention learns where tokens stand."""

from attnjax.ops.position.disentangled import VARIANT as DISENTANGLED
from attnjax.ops.position.disentangled import disentangled_attention
from attnjax.ops.position.dual_triangle import VARIANT as DUAL_TRIANGLE
from attnjax.ops.position.dual_triangle import dual_triangle_attention
from attnjax.ops.position.shaw import VARIANT as SHAW
from attnjax.ops.position.shaw import shaw_relative_attention

VARIANTS = (SHAW, DISENTANGLED, DUAL_TRIANGLE)

__all__ = [
    "VARIANTS",
    "disentangled_attention",
    "dual_triangle_attention",
    "shaw_relative_attention",
]
