"""One float64 NumPy function per leaf, named as the leaf, written from the paper's formula."""

from collections.abc import Callable

from tests.oracles import (
    gated,
    kernelized,
    kv_decode,
    local_structured,
    lowrank,
    memory,
    position,
    softmax_core,
    sparse,
    sparse_blocks,
    sparse_branches,
    sparse_clusters,
)

_FAMILIES = (
    softmax_core,
    position,
    local_structured,
    kv_decode,
    gated,
    kernelized,
    memory,
    sparse,
    sparse_blocks,
    lowrank,
    sparse_branches,
    sparse_clusters,
)

ORACLES: dict[str, Callable] = {
    name: oracle
    for family in _FAMILIES
    for name, oracle in vars(family).items()
    if not name.startswith("_") and getattr(oracle, "__module__", None) == family.__name__
}
