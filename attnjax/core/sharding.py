"""Where the tokens of a sequence are: all here, or sharded over the devices of a mesh axis.

An implementation that runs across devices has an attribute `sharding`, a `SequenceSharding`.  What
an op does over all tokens besides attention goes through it: `cumsum(x, impl)` is right wherever
`impl` has the tokens.

Inside `jax.shard_map`, with its check on, every array is typed by the mesh axes over which it
varies, and a loop's carry must keep its type.  A carry that starts as zeros varies over none, so it
has to be cast: `pvary_like`.
"""

from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.typing import Array

Tree = TypeVar("Tree")


def _axes(x: Any) -> frozenset[str]:
    aval = jax.typeof(x)
    kind = getattr(aval, "mat", None)  # its name since JAX 0.10.2
    return frozenset(getattr(aval, "vma", ()) if kind is None else kind.varying)


def pvary_like(tree: Tree, like: Any) -> Tree:
    """`tree`, its arrays varying over every axis that any array in `like` varies over.

    The cast does nothing to values; its transpose is the sum over the axes, so that what is
    replicated gets the gradient of all devices.  They are added in float32 at least: sums of
    bfloat16 would lose what small shares bring to large ones.
    """
    wanted = frozenset[str]().union(*(_axes(x) for x in jax.tree.leaves(like)))
    if not wanted:
        return tree

    def cast(x: Any) -> Any:
        missing = tuple(sorted(wanted - _axes(x)))
        if not missing:
            return x
        narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        wide = x.astype(jnp.float32) if narrow else x
        return lax.pcast(wide, missing, to="varying").astype(x.dtype)

    return jax.tree.map(cast, tree)


class SequenceSharding(Protocol):
    """What one has to know about tokens elsewhere."""

    def lengths(self, T: int, S: int) -> tuple[int, int]:
        """The lengths of the sequences of which T queries and S keys are here."""
        ...

    def columns(self, S: int) -> int:
        """How many keys a pair operand has columns for."""
        ...

    def cumsum(self, x: Array, axis: int) -> Array:
        """The sum over all tokens up to each one here."""
        ...

    def gathered(self, x: Array, axis: int) -> Array:
        """x of all tokens, in the order of the text: for a number or two of each."""
        ...

    def own(self, x: Array, axis: int) -> Array:
        """The part of what `gathered` gives that belongs to the tokens here."""
        ...


class Local:
    """All tokens are here, in order."""

    def lengths(self, T: int, S: int) -> tuple[int, int]:
        return T, S

    def columns(self, S: int) -> int:
        return S

    def cumsum(self, x: Array, axis: int) -> Array:
        return jnp.cumsum(x, axis=axis)

    def gathered(self, x: Array, axis: int) -> Array:
        return x

    def own(self, x: Array, axis: int) -> Array:
        return x


LOCAL = Local()


def sharding_of(impl: Any) -> SequenceSharding:
    """Where an implementation has the tokens."""
    return getattr(impl, "sharding", LOCAL)


def cumsum(x: Array, impl: Any = None, *, axis: int = 1) -> Array:
    """The sum over the tokens up to each, as `jnp.cumsum`, wherever `impl` has the tokens.

    Inside `jax.shard_map`, x holds this device's tokens and `impl` is a strategy such as
    `parallel.Ring("sp", "zigzag")`: the sum runs in the order of the text, whatever the layout.
    """
    return sharding_of(impl).cumsum(x, axis)
