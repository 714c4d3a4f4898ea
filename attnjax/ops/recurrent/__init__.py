"""Linear attention, gated recurrences, and memories of constant size."""

# gated recurrences
from attnjax.ops.recurrent.linear import VARIANT as LINEAR
from attnjax.ops.recurrent.linear import linear_attention

# feature maps, and sums over all tokens

# memories, convolutions and scans

VARIANTS = (
    # gated recurrences
    LINEAR,
    # feature maps, and sums over all tokens
    # memories, convolutions and scans
)

__all__ = [
    "VARIANTS",
    # gated recurrences
    "linear_attention",
    # feature maps, and sums over all tokens
    # memories, convolutions and scans
]
