"""Attention to what is chosen by content: blocks of keys, clusters, buckets."""

from attnjax.ops.sparse.moba import VARIANT as MOBA
from attnjax.ops.sparse.moba import moba

VARIANTS = (MOBA,)

__all__ = ["VARIANTS", "moba"]
