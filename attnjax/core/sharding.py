"""Where the tokens of a sequence are: all here, or sharded over the devices of a mesh axis.

An implementation that runs across devices has an attribute `sharding`, a `SequenceSharding`.  What
an op does over all tokens besides attention goes through it: `cumsum(x, impl)` is right wherever
`impl` has the tokens.

Inside `jax.shard_map`, with its check on, every array is typed by the mesh axes over which it
varies, and a loop's carry must keep its type.  A carry that starts as zeros varies over none, so it
has to be cast: `pvary_like`.

Outside it, under a mesh whose axes are Explicit (those of `jax.make_mesh` are), every array is
typed by the mesh axes that split it, and loops, reshapes and gathers want to be told those of
theirs.  The engines leave that to XLA, as under Auto axes, and give results the sharding of their
inputs: `on_any_mesh`.
"""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from attnjax.typing import Array

Tree = TypeVar("Tree")
Fn = TypeVar("Fn", bound=Callable[..., Any])


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


@runtime_checkable
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


def of_whole_text(fn: Fn) -> Fn:
    """An op which refuses an `impl` that holds a part of the tokens, inside `jax.shard_map`.

    Its own sums, means or choices over tokens would silently be those of a part.  Over global
    arrays, where `parallel.shard` spreads the attention alone, it runs on any devices.
    """

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if sharding_of(impl := kwargs.get("impl")) is not LOCAL:
            raise ValueError(
                f"{fn.__name__}: impl is {type(impl).__name__}, which has a part of the tokens, "
                f"expected all of them: parallel.shard({fn.__name__}, mesh, strategy)"
            )
        return fn(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


# -------------------------------------------------------------------------------- Explicit axes


def on_any_mesh(fn: Fn) -> Fn:
    """`fn`, so that arrays typed by Explicit mesh axes are as good as any, under jit and eagerly.

    fn runs with these axes Auto, where XLA places what is between.  Its results are typed again:
    an axis of a result keeps the sharding of an axis of the first array among the arguments: the
    one in its place as far as all sizes agree, from there on the first of its size.  Values never
    depend on it.  Whatever fn computes with has to be an argument, or a leaf of one: it must call
    no function that closes over an array of an Explicit mesh.
    """

    signature = inspect.signature(fn)

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        mesh = _explicit_mesh((args, kwargs))
        if mesh is None:
            return fn(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        leaves = jax.tree.leaves(list(given.arguments.values()))
        like = jax.typeof(next(filter(_is_array, leaves)))
        auto = dict.fromkeys(mesh.explicit_axes, AxisType.Auto)
        token = _tokens_are_split.set(any(map(_splits_tokens, leaves)))
        try:
            with jax.sharding.use_abstract_mesh(mesh.update_axis_types(auto)):
                args, kwargs = jax.tree.map(_untyped, (args, kwargs))
                out = fn(*args, **kwargs)
        finally:
            _tokens_are_split.reset(token)
        return jax.tree.map(functools.partial(_typed, like=like, mesh=mesh), out)

    return wrapped  # type: ignore[return-value]


def in_context_of(mesh: Mesh, fn: Callable[[Tree], Any], tree: Tree) -> Any:
    """fn(tree) where the mesh, with Auto axes, is the one of the context, whichever is set."""
    outer = jax.sharding.get_abstract_mesh()
    if outer.empty or outer.manual_axes or outer == mesh.abstract_mesh:
        return fn(tree)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        out = fn(jax.tree.map(_untyped, tree))
    return jax.tree.map(_untyped, out)


# Whether arguments of the outermost function `on_any_mesh` are typed as split along their tokens.
_tokens_are_split = contextvars.ContextVar("attnjax_tokens_are_split", default=False)


def _splits_tokens(x: Any) -> bool:
    """Whether x (B,T,...) is typed as split along T, as far as types tell."""
    if not _is_array(x) or x.ndim < 3:
        return False
    axes = jax.typeof(x).sharding.spec[1]
    sizes = jax.typeof(x).sharding.mesh.shape
    return any(sizes[axis] > 1 for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def no_kernel() -> str | None:
    """Why a kernel may not run in this context: it is split by `jax.shard_map`, or by XLA."""
    mesh = jax.sharding.get_abstract_mesh()
    if _tokens_are_split.get():
        return "arrays are split along their tokens: kernels are over examples and heads alone"
    if not mesh.manual_axes:
        return None
    left = {axis: n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes and n > 1}
    return f"a mesh {left} besides that of jax.shard_map: kernels know none" if left else None


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array)


def _explicit_mesh(tree: Any) -> AbstractMesh | None:
    """The mesh by whose Explicit axes arrays of the tree are typed, if any."""
    for x in jax.tree.leaves(tree):
        if _is_array(x) and (mesh := jax.typeof(x).sharding.mesh).explicit_axes:
            return mesh
    return None


def _untyped(x: Any) -> Any:
    """An array of some mesh for the context's, which has no Explicit axes; it stays where it is."""
    if not _is_array(x) or jax.typeof(x).sharding.mesh.empty:
        return x
    known = not isinstance(x, jax.core.Tracer)  # and stays so, for masks are looked into
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def _typed(x: Any, like: Any, mesh: AbstractMesh) -> Any:
    """A result, split along the axes that it shares with an array of type `like`."""
    if not _is_array(x):
        return x
    split = list(zip(like.shape, like.sharding.spec, strict=True))
    spec: list[Any] = []
    in_place = True
    for size in x.shape:
        in_place = in_place and bool(split) and split[0][0] == size
        found = 0 if in_place else next((i for i, (n, _) in enumerate(split) if n == size), None)
        spec.append(None if found is None else split.pop(found)[1])
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
