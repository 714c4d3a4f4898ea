"""Engine 1: pairwise attention.  The signature, the choice of an implementation, and `explain`."""

import contextlib
import contextvars
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from attnjax.core import dense, masks, normalizers
from attnjax.core import mods as mods_
from attnjax.core.blockwise import Blockwise
from attnjax.core.call import Call, finish, prepare
from attnjax.core.cudnn import CuDNN
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod, RelativeValues
from attnjax.core.normalizers import Normalizer
from attnjax.typing import Array, Bool, Float, Int, K, Out, Positions, Q, V, Weights


@runtime_checkable
class Implementation(Protocol):
    """A way to execute a call; any object with these two methods may be given as `impl`."""

    def supported(self, call: Call) -> str | None:
        """None if it can run the call, else the reason why not."""
        ...

    def run(self, call: Call) -> Array:
        """The weighted sum of values, (B,N,T,D), in the working dtype."""
        ...


IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": dense.Dense(),
    "blockwise": Blockwise(),
    "cudnn": CuDNN(),
}
Impl = str | Implementation | None


def attend(
    q: Q,
    k: K,
    v: V | RelativeValues,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Positions | None = None,
    k_positions: Positions | None = None,
    impl: Impl = None,
) -> Out:
    """Pairwise attention: scale * q.k -> mods in order -> mask -> normalize -> weighted sum of v.

    q (B,T,N,H), k (B,S,K,H), v (B,S,K,D) -> (B,T,N,D); N is a multiple of K, and consecutive N/K
    query heads share a key/value head.

    mods         tuple of `mods.Mod`: what happens to scores
    mask         a `masks.Mask`: which pairs may attend
    normalizer   a `normalizers.Normalizer`: how a row of scores becomes weights
    scale        1/sqrt(H) if None; may be traced
    q_positions  (T,) and k_positions (S,), integers: what masks and mods take for positions,
                 0, 1, 2, ... if None
    impl         "dense", "blockwise", "cudnn" or an Implementation: runs, or raises with the
                 reason.  None takes what is fastest here; `explain` tells which

    Scores, statistics and sums are float32 (float64 for float64); the result has q's dtype.  A
    row with nothing allowed gives zeros and zero gradients.  A NaN or infinity in q, k or v
    reaches exactly the rows that may see it.  Results are bit-equal from run to run.

    Raises ValueError for shapes that do not fit and for an `impl` that cannot run the call,
    TypeError for dtypes and values of the wrong kind.
    """
    call = prepare(q, k, v, mods, mask, normalizer, scale, q_positions, k_positions)
    _record(call, impl)
    return finish(call, _resolve(impl, call).run(call))


def attention_weights(
    q: Q,
    k: K,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Positions | None = None,
    k_positions: Positions | None = None,
) -> Weights:
    """The weights that `attend` would give the values, (B,N,T,S), dense; arguments as there."""
    v = jnp.zeros((*jnp.shape(k)[:3], 0), jnp.asarray(k).dtype)
    call = prepare(q, k, v, mods, mask, normalizer, scale, q_positions, k_positions)
    return dense.weights(call).astype(call.dtype)


def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K D"],
    bias: Float[Array, "*B N T S"] | None = None,
    mask: Bool[Array, "*B N T S"] | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Impl = None,
) -> Float[Array, "*B T N D"]:
    """jax.nn.dot_product_attention over `attend`: same arguments, same results.

    Two differences.  A row with nothing allowed gives zeros, where jax.nn gives the mean of the
    values; and `implementation` takes what `attend` takes as `impl`.  `is_causal` aligns the
    first query with the first key, also where T and S differ.
    """
    batched = jnp.ndim(query) == 4
    lift = lambda x: x if jnp.ndim(x) == 4 else jnp.asarray(x)[(None,) * (4 - jnp.ndim(x))]
    chosen: list[Mask] = []
    if mask is not None:
        chosen.append(masks.array(lift(mask)))
    if is_causal:
        chosen.append(masks.causal)
    if query_seq_lengths is not None or key_value_seq_lengths is not None:
        chosen.append(masks.lengths(query_seq_lengths, key_value_seq_lengths))
    if local_window_size is not None:
        both = local_window_size
        chosen.append(masks.window(*((both, both) if isinstance(both, int) else both)))
    combined = None
    for m in chosen:
        combined = m if combined is None else combined & m
    out = attend(
        lift(query),
        lift(key),
        lift(value),
        mods=() if bias is None else (mods_.pair_bias(bias),),
        mask=combined,
        scale=scale,
        impl=implementation,
    )
    return out if batched else out[0]


# ------------------------------------------------------------------------- which implementation

# Up to this many scores per head one dense pass beats the overhead of a scan (and compiles faster),
# as long as all of them together stay small.  Measured on a CPU, see experiments/cost_curves.py.
_DENSE_SCORES = 256 * 256
_DENSE_TOTAL = 1 << 22


def _choose(call: Call) -> Implementation:
    z = call.shape
    cudnn = IMPLEMENTATIONS["cudnn"]
    if cudnn.supported(call) is None:
        return cudnn
    small = z.T * z.S <= _DENSE_SCORES and z.B * z.N * z.T * z.S <= _DENSE_TOTAL
    return IMPLEMENTATIONS["dense" if small else "blockwise"]


def _resolve(impl: Impl, call: Call) -> Implementation:
    if impl is None:
        return _choose(call)
    if isinstance(impl, str):
        if impl not in IMPLEMENTATIONS:
            near = difflib.get_close_matches(impl, IMPLEMENTATIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"attend: impl is {impl!r}, expected None, an Implementation or one of "
                f"{', '.join(map(repr, IMPLEMENTATIONS))}{hint}"
            )
        name, impl = impl, IMPLEMENTATIONS[impl]
    elif not isinstance(impl, Implementation) or isinstance(impl, type):
        raise TypeError(
            f"attend: impl is {impl!r}, expected None, a name or an object with supported and run"
        )
    else:
        name = repr(impl)
    if (reason := impl.supported(call)) is not None:
        raise ValueError(f"attend: impl {name!r} does not run this call: {reason}")
    return impl


# ------------------------------------------------------------------------------------- explain

_recorder: contextvars.ContextVar[list[tuple[Call, Impl]] | None] = contextvars.ContextVar(
    "attnjax_recorder", default=None
)


def _record(call: Call, impl: Impl) -> None:
    if (calls := _recorder.get()) is not None:
        calls.append((call, impl))


@contextlib.contextmanager
def _recording() -> Iterator[list[tuple[Call, Impl]]]:
    calls: list[tuple[Call, Impl]] = []
    token = _recorder.set(calls)
    try:
        yield calls
    finally:
        _recorder.reset(token)


@dataclass(frozen=True)
class Choice:
    """One implementation for one call: whether it runs, could, or why not."""

    implementation: str
    runs: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: for each call of `attend`, a headline and the choices."""

    op: str
    calls: tuple[tuple[str, tuple[Choice, ...]], ...]

    def __str__(self) -> str:
        lines = [self.op] if self.calls else [f"{self.op}: no call of attend"]
        for headline, choices in self.calls:
            lines += ["", headline]
            width = max(len(c.implementation) for c in choices)
            lines += [
                f"  {'->' if c.runs else '  '} {c.implementation:{width}}  {c.reason}"
                for c in choices
            ]
        return "\n".join(lines)


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which implementation `op(*args, **kwargs)` runs, and why each of the others does not.

    The op is traced, not executed; print the result for a table.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))

    def traced(arrays: list[Any]) -> Any:
        rest = iter(arrays)  # arrays are traced; everything else stays the Python value it is
        merged = [next(rest) if isinstance(x, jax.Array) else x for x in leaves]
        given, named = jax.tree.unflatten(tree, merged)
        return op(*given, **named)

    with _recording() as calls:
        jax.eval_shape(traced, [x for x in leaves if isinstance(x, jax.Array)])
    return Explanation(
        getattr(op, "__name__", repr(op)), tuple(_explain_call(*entry) for entry in calls)
    )


def _explain_call(call: Call, impl: Impl) -> tuple[str, tuple[Choice, ...]]:
    z = call.shape
    letters = ", ".join(f"{x}={getattr(z, x)}" for x in "BTSNKHD")
    headline = (
        f"attend: {letters}, {jnp.dtype(call.dtype).name}, mask {call.mask}, {call.normalizer}"
    )
    if call.mods:
        headline += ", mods " + ", ".join(
            getattr(m.fn, "__name__", "?").strip("_") for m in call.mods
        )
    chosen = _resolve(impl, call)
    why = "fastest for this shape here" if impl is None else "asked for"
    choices = []
    for name, candidate in IMPLEMENTATIONS.items():
        runs = candidate == chosen
        reason = candidate.supported(call)
        text = f"runs: {why}" if runs else f"cannot: {reason}" if reason else "could run"
        choices.append(Choice(name, runs, text))
    if not any(c.runs for c in choices):
        choices.append(Choice(repr(chosen), True, f"runs: {why}"))
    return headline, tuple(choices)
