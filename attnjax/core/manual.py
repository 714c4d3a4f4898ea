"""Inside `jax.shard_map`: what JAX wants to know about arrays there, whichever its release.

With its check on, shard_map types every array by the mesh axes over which it varies, and a loop's
carry must keep its type.  A carry that starts as zeros varies over none, so it has to be cast.
"""

from typing import Any, TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")


def _axes(x: Any) -> frozenset[str]:
    aval = jax.typeof(x)
    kind = getattr(aval, "mat", None)  # its name since JAX 0.10.2
    return frozenset(getattr(aval, "vma", ()) if kind is None else kind.varying)


def varying(tree: Tree, like: Any) -> Tree:
    """`tree`, its arrays varying over every axis that any array in `like` varies over.

    The cast does nothing to values; its transpose is the sum over the axes, so that what is
    replicated gets the gradient of all devices.
    """
    wanted = frozenset[str]().union(*(_axes(x) for x in jax.tree.leaves(like)))
    if not wanted:
        return tree

    def cast(x: Any) -> Any:
        missing = tuple(sorted(wanted - _axes(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
