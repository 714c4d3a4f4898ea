"""Engine 1: pairwise attention.  The signature, and the choice of an implementation.

An implementation runs a `request.Request` and gives the weighted sum of values, (B,N,T,D).
"""

import functools
import operator
from dataclasses import replace
from typing import Annotated, Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import dispatch, masks, normalizers
from attnjax.core import mods as mods_
from attnjax.core.blocks.selection import Selection
from attnjax.core.dispatch import Implementation, pick
from attnjax.core.dropout import Dropout
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod, RelativeValues
from attnjax.core.normalizers import Normalizer, State
from attnjax.core.numerics import known
from attnjax.core.pairwise import dense
from attnjax.core.pairwise.blockwise import Blockwise
from attnjax.core.pairwise.cudnn import CuDNN
from attnjax.core.pairwise.request import Request, Terms, finish, prepare
from attnjax.core.pairwise.triton import Triton
from attnjax.core.sharding import on_any_mesh, sharding_of
from attnjax.typing import Array, Bool, Float, Int, K, Out, Q, V, Weights

PAPERS = (252,)

Impl = Annotated[dispatch.Impl, "attend"]
"""What `impl` may be where it goes to this engine; records of ops read the engine off it."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": dense.Dense(),
    "blockwise": Blockwise(),
    "cudnn": CuDNN(),
    "triton": Triton(),
}


@on_any_mesh
def attend(
    q: Q,
    k: K,
    v: Float[Array, "B S F D"] | RelativeValues,
    *,
    mods: tuple[Mod, ...] = (),
    mask: Mask = masks.everything,
    blocks: Selection | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Array | np.ndarray | None = None,
    k_positions: Array | np.ndarray | None = None,
    dropout: Dropout | None = None,
    impl: Impl = None,
) -> Out:
    """Pairwise attention: scale * q.k -> mods in order -> mask -> normalize -> weighted sum of v.

    q (B,T,N,H), k (B,S,K,H), v (B,S,K,D) -> (B,T,N,D); N is a multiple of K, and consecutive N/K
    query heads share a key/value head.  Values may have more heads than keys, any multiple of K
    that divides N, so that fewer query heads share one; keys are then copied to as many.

    mods         tuple of `mods.Mod`: what happens to scores
    mask         a `masks.Mask`: which pairs may attend
    blocks       a `Selection` of blocks of keys for each block of queries, see `select`: only its
                 pairs are seen, of which `mask` may forbid more, and the work is theirs alone.
                 None: all
    normalizer   a `normalizers.Normalizer`: how a row of scores becomes weights
    scale        a number, or (N,1), one for each head; 1/sqrt(H) if None; may be traced
    q_positions  (T,) and k_positions (S,), integers: what masks and mods take for positions,
                 0, 1, 2, ... if None; or (B,T) and (B,S), those of each example (prompts padded on
                 the left).  With `blocks` also (B,T,X) and (B,S,X), where the heads that select see
                 the tokens in an order of their own (clusters, buckets).
                 Arrays of masks and operands of mods may then be those of a text, read at
                 positions (T,), or the call's own, one element for each query or key in their
                 order: those of T (or S) elements are, but for a mask's array under positions
                 0 .. T-1 in any order, which is that of the text.  Positions beyond a text raise;
                 traced ones read the last element of a mask's array, NaN of a mod's
    dropout      a `Dropout(rate, key)` of weights after they are normalized, the same under every
                 `impl`; pairs at the same positions share their fate.  None: no weight is dropped
    impl         "dense", "blockwise", "cudnn", "triton" or an Implementation: runs, or raises with
                 the reason.  None takes what is fastest here; `explain` tells which

    Scores, statistics and sums are float32 (float64 for float64); the result has q's dtype.  A
    row with nothing allowed gives zeros and zero gradients.  A NaN or infinity in q, k or v, and a
    NaN in a mod's operand of a query or key, reaches exactly the rows that may see it.  Results
    are bit-equal from run to run.  Blocks are worked on in tiles of 2^17 scores that gather the
    queries of a key block; memory O(T M + S).

    Raises ValueError for shapes that do not fit, for an `impl` that cannot run the call and,
    outside jit, for blocks out of range or listed twice (under jit an index out of range selects
    nothing); TypeError for dtypes and values of the wrong kind.
    """
    request = prepare(
        q,
        k,
        v,
        mods=mods,
        mask=mask,
        blocks=blocks,
        normalizer=normalizer,
        scale=scale,
        q_positions=q_positions,
        k_positions=k_positions,
        dropout=dropout,
        sharding=sharding_of(impl),
    )
    return finish(request, choose("attend", impl, request).run(request))


@on_any_mesh
def attend_state(
    q: Q,
    k: K,
    v: Float[Array, "B S F D"] | RelativeValues,
    *,
    impl: Impl = None,
    **terms: Unpack[Terms],
) -> State:
    """What these keys leave behind for each query, to be merged with what other keys leave.

    The arguments of `attend`; `impl` "dense", "blockwise" or one with a method `state`.  The state
    (m, sums, values), rows (B,N,T,1) and (B,N,T,D), is in the working dtype and is differentiable
    but for m, on which no result depends.  `join_states` turns states of disjoint keys into the
    attention over all of them.
    """
    request = prepare(q, k, v, **terms, sharding=sharding_of(impl))
    return choose_state("attend_state", impl, request).state(request)


@on_any_mesh
def join_states(*states: State, normalizer: Normalizer = normalizers.softmax) -> Out:
    """The attention over the union of disjoint sets of keys, (B,T,N,D), in the states' dtype.

    Merging is associative: keys may be split over tiles, devices or parts of a cache in any way.
    `normalizer` is that of the states, with one pass: the others need a number of the whole row
    before they weigh a score, which no part has.
    """
    if normalizer.stages:
        raise ValueError(f"join_states: {normalizer}, expected a one-pass normalizer")
    N = states[0].m.shape[1]
    params = tuple(jnp.reshape(p, (1, -1, 1, 1)) for p in normalizer.params)
    if any(p.shape[1] not in (1, N) for p in params):
        raise ValueError(f"join_states: {normalizer} has parameters for other than N = {N} heads")
    total = functools.reduce(lambda a, b: normalizers.merge(a, b, normalizer.rescale), states)
    out = normalizers.finish(replace(normalizer, params=params), total)
    return out.transpose(0, 2, 1, 3)


@on_any_mesh
def attention_weights(q: Q, k: K, **terms: Unpack[Terms]) -> Weights:
    """The weights that `attend` would give the values, (B,N,T,S), dense; arguments as there."""
    request = prepare(q, k, _no_values(k), **terms)
    return dense.weights(request).astype(request.dtype)


@on_any_mesh
def attention_scores(q: Q, k: K, **terms: Unpack[Terms]) -> Weights:
    """The scores that `attend` would normalize, (B,N,T,S), dense; arguments as there.

    After the scale and all mods, -inf where the mask or the selection of blocks forbids; in q's
    dtype.  No normalizer takes part.
    """
    request = prepare(q, k, _no_values(k), **terms)
    return dense.scores(request).astype(request.dtype)


def _no_values(k: K) -> V:
    """Values of width 0."""
    return jnp.zeros((*jnp.shape(k)[:3], 0), jnp.asarray(k).dtype)


@overload
def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K D"],
    bias: Float[Array, "*B N T S"] | None = None,
    mask: Bool[Array, "*B N T S"] | Mask | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Impl = None,
    return_residual: Literal[False] = False,
) -> Float[Array, "*B T N D"]: ...


@overload
def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K D"],
    bias: Float[Array, "*B N T S"] | None = None,
    mask: Bool[Array, "*B N T S"] | Mask | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Impl = None,
    return_residual: Literal[True],
) -> tuple[Float[Array, "*B T N D"], Float[Array, "*B T N"]]: ...


@on_any_mesh
def dot_product_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K D"],
    bias: Float[Array, "*B N T S"] | None = None,
    mask: Bool[Array, "*B N T S"] | Mask | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Impl = None,
    return_residual: bool = False,
) -> Any:
    """jax.nn.dot_product_attention over `attend`: same arguments, same results.

    A row with nothing allowed gives zeros, where jax.nn gives the mean of the values.  `is_causal`
    aligns the first query with the first key, also where T and S differ.  `mask` may also be one
    of `masks`.  With `return_residual` the result is (out, log sum exp of the scores (...,T,N)),
    the second in key's dtype and without gradient; a row with nothing allowed has jax.nn's large
    negative number there.

    `implementation` is "xla", dense or blockwise by size; "cudnn", which is jax.nn's own and needs
    a GPU; or what `attend` takes as `impl`.
    """
    lift = lambda x: x if jnp.ndim(x) == 4 else jnp.asarray(x)[(None,) * (4 - jnp.ndim(x))]
    chosen: list[Mask] = []
    if mask is not None:
        chosen.append(mask if isinstance(mask, Mask) else masks.array(lift(mask)))
    if is_causal:
        chosen.append(masks.causal)
    if query_seq_lengths is not None or key_value_seq_lengths is not None:
        chosen.append(masks.lengths(query_seq_lengths, key_value_seq_lengths))
    if local_window_size is not None:
        both = local_window_size
        chosen.append(masks.window(*((both, both) if isinstance(both, int) else both)))
    if implementation == "cudnn" and not isinstance(mask, Mask) and CuDNN().missing() is None:
        theirs: Any = jax.nn.dot_product_attention
        return theirs(
            query,
            key,
            value,
            bias,
            mask,
            scale=scale,
            is_causal=is_causal,
            query_seq_lengths=query_seq_lengths,
            key_value_seq_lengths=key_value_seq_lengths,
            local_window_size=local_window_size,
            implementation="cudnn",
            return_residual=return_residual,
        )
    request = prepare(
        lift(query),
        lift(key),
        lift(value),
        mods=() if bias is None else (mods_.pair_bias(bias),),
        mask=functools.reduce(operator.and_, chosen, masks.everything),
        scale=scale,
        sharding=sharding_of(implementation),
    )
    impl = _by_size(request) if implementation == "xla" else implementation
    out = _with_residual(request, impl) if return_residual else _run(request, impl)
    return out if jnp.ndim(query) == 4 else jax.tree.map(lambda x: x[0], out)


def _run(request: Request, impl: Impl) -> Out:
    return finish(request, choose("dot_product_attention", impl, request).run(request))


def _with_residual(request: Request, impl: Impl) -> tuple[Out, Array]:
    """The result, and the logarithm of what its rows were divided by, (B,T,N)."""
    state = choose_state("dot_product_attention", impl, request).state(request)
    out = finish(request, normalizers.finish(request.normalizer, state))
    (total,) = lax.stop_gradient(state.sums)
    nothing = total == 0
    low = -0.7 * float(jnp.finfo(jnp.float32).max)  # what jax.nn has for a forbidden score
    log_sum = jnp.log(jnp.where(nothing, 1, total)) + lax.stop_gradient(state.m)
    log_sum = jnp.where(nothing, low, log_sum)
    return out, log_sum[..., 0].swapaxes(1, 2).astype(request.dtype)


# ------------------------------------------------------------------------- which implementation

# Up to this many scores per head one dense pass beats the overhead of a scan (and compiles faster),
# as long as all of them together stay small.  Measured on a CPU: experiments/cost/softmax_cost.py.
_DENSE_SCORES = 256 * 256
_DENSE_TOTAL = 1 << 22


def choose(engine: str, impl: Impl, request: Request) -> Any:
    """The implementation that runs the call, told to `explain` in the engine's name."""
    told = functools.partial(_headline, engine)
    return pick(engine, impl, request, IMPLEMENTATIONS, _choose, told)


def choose_state(engine: str, impl: Impl, request: Request) -> Any:
    """The same among those that can stop before the last division: cuDNN gives no sums."""
    if impl is not None and not isinstance(impl, str) and not hasattr(impl, "state"):
        raise TypeError(f"{engine}: impl is {impl!r}, expected one with a method state")
    known = {name: each for name, each in IMPLEMENTATIONS.items() if hasattr(each, "state")}
    return pick(engine, impl, request, known, _by_size, functools.partial(_headline, engine))


def _choose(request: Request) -> Implementation:
    for name in ("cudnn", "triton"):  # on a GPU alone
        if IMPLEMENTATIONS[name].supported(request) is None:
            return IMPLEMENTATIONS[name]
    return _by_size(request)


def _by_size(request: Request) -> Implementation:
    z = request.shape
    small = (
        known(z.B, z.T, z.S)
        and z.T * z.S <= _DENSE_SCORES
        and z.B * z.N * z.T * z.S <= _DENSE_TOTAL
    )
    return IMPLEMENTATIONS["dense" if small else "blockwise"]


def _headline(engine: str, request: Request) -> str:
    z = request.shape
    letters = ", ".join(f"{x}={getattr(z, x)}" for x in "BTSNKHD")
    dtype = jnp.dtype(request.dtype).name
    told = f"{engine}: {letters}, {dtype}, mask {request.mask}, {request.normalizer}"
    if (blocks := request.selection) is not None:
        M = blocks.indices.shape[-1]
        told += f", at most {M} blocks of {blocks.block_k} keys for {blocks.block_q} queries"
    if request.mods:
        told += ", mods " + ", ".join(
            getattr(m.fn, "__name__", "?").strip("_") for m in request.mods
        )
    return told
