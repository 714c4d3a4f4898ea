"""Attention to the neighbors on a line or a grid."""

from attnjax.ops.local_structured.neighborhood import VARIANT as NEIGHBORHOOD
from attnjax.ops.local_structured.neighborhood import neighborhood_attention

VARIANTS = (NEIGHBORHOOD,)

__all__ = ["VARIANTS", "neighborhood_attention"]
