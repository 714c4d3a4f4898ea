"""Engine 3: choose blocks of keys by content, then attend to them alone.

    scores of blocks -> Selection(indices, valid) -> attend_selected(q, k, v, selection, ...)

Sizes are static, so a selection is an array like any other; which entries count is `valid`.  The
work is that of the blocks selected, whichever they are, in forward and backward pass.

Blocks of keys are block_k neighbors, blocks of queries block_q; the last may be shorter.  Scores of
blocks are (B,U,X,n): U query blocks, n key blocks, and X = 1, K or N heads that select for
themselves: 1 for all, K for a group of query heads that share keys, N for each query head.

Selecting is not differentiated: gradients reach what is attended to, and scores only where an op
uses them in another way (a gate, a loss of their own).
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from attnjax.core import normalizers
from attnjax.core.masks import Mask
from attnjax.core.mods import Mod, RelativeValues, group_of
from attnjax.core.normalizers import Normalizer, State
from attnjax.core.pairwise.attend import Impl, choose, choose_state
from attnjax.core.pairwise.request import Blocks, check_qkv, finish, prepare
from attnjax.core.sharding import sharding_of
from attnjax.typing import Array, Bool, Int, K, Out, Q, V


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["indices", "valid"], meta_fields=[]
)
@dataclass(frozen=True)
class Selection:
    """The blocks of keys that each block of queries attends to: M at most.

    indices (B,U,X,M) integers, valid (B,U,X,M) booleans.  Valid entries of one row differ from
    each other; what stands at an invalid entry does not matter.
    """

    indices: Int[Array, "B U X M"]
    valid: Bool[Array, "B U X M"]


def attend_selected(
    q: Q,
    k: K,
    v: V,
    selection: Selection,
    *,
    block_q: int,
    block_k: int,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Array | np.ndarray | None = None,
    k_positions: Array | np.ndarray | None = None,
    impl: Impl = None,
) -> Out:
    """`attend` over the selected blocks of keys, of which `mask` may forbid more.

    Query i of head n sees key j if block j // block_k is selected for block i // block_q and the
    head that selects for n, and if `mask` allows it.  A query without any key gives zeros.

    block_q, block_k          lengths of the blocks; they need not divide T and S
    q_positions, k_positions  (T,) and (S,), or (B,T,X) and (B,S,X) where the heads that select see
                              the tokens in an order of their own (clusters, buckets)

    The other arguments, numerics and errors are those of `attend`.  The work is that of the pairs
    selected, in tiles of 2^17 scores that gather the queries of a key block; memory O(T M + S).
    Raises ValueError for a selection that does not fit; outside jit also for an index out of range
    and for a block that is listed twice.  Under jit an index out of range selects nothing.
    """
    request = _call(
        q, k, v, selection, block_q, block_k, mods, mask, normalizer, scale,
        q_positions, k_positions, impl,
    )  # fmt: skip
    return finish(request, choose("attend_selected", impl, request).run(request))


def selected_state(
    q: Q,
    k: K,
    v: V,
    selection: Selection,
    *,
    block_q: int,
    block_k: int,
    mods: tuple[Mod, ...] = (),
    mask: Mask | None = None,
    normalizer: Normalizer = normalizers.softmax,
    scale: float | Array | None = None,
    q_positions: Array | np.ndarray | None = None,
    k_positions: Array | np.ndarray | None = None,
    impl: Impl = None,
) -> State:
    """What `attend_state` gives, of the selected blocks."""
    request = _call(
        q, k, v, selection, block_q, block_k, mods, mask, normalizer, scale,
        q_positions, k_positions, impl,
    )  # fmt: skip
    return choose_state("selected_state", impl, request).state(request)


def _call(
    q, k, v, selection, block_q, block_k, mods, mask, normalizer, scale, q_positions, k_positions,
    impl,
):  # fmt: skip
    name = "attend_selected"
    for what, size in (("block_q", block_q), ("block_k", block_k)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name}: {what} is {size!r}, expected a positive integer")
    if not isinstance(selection, Selection):
        raise TypeError(
            f"{name}: selection is {type(selection).__name__}, expected a select.Selection"
        )
    values = v.v if isinstance(v, RelativeValues) else v
    z = check_qkv(name, jnp.asarray(q), jnp.asarray(k), jnp.asarray(values))
    tokens = sharding_of(impl)
    U, n = -(-z.T // block_q), -(-tokens.columns(z.S) // block_k)
    shape = jnp.shape(selection.indices)
    if jnp.shape(selection.valid) != shape:
        raise ValueError(
            f"{name}: selection.valid has shape {jnp.shape(selection.valid)}, expected that of "
            f"selection.indices, {shape}"
        )
    if len(shape) != 4 or shape[:2] != (z.B, U) or shape[2] not in (1, z.K, z.N) or not shape[3]:
        raise ValueError(
            f"{name}: selection has shape {shape}, expected (B,U,X,M) with B = {z.B}, "
            f"U = ceil(T / block_q) = {U}, X one of 1, K = {z.K}, N = {z.N}, and M at least 1"
        )
    if not jnp.issubdtype(jnp.result_type(selection.indices), jnp.integer):
        raise TypeError(
            f"{name}: selection.indices has dtype {jnp.result_type(selection.indices)}, "
            "expected integers"
        )
    _check_entries(name, selection, n)
    indices = jnp.asarray(selection.indices)
    valid = jnp.asarray(selection.valid) & (indices >= 0) & (indices < n)
    lay = lambda x: jnp.swapaxes(x, 1, 2)
    q_positions, k_positions = (
        None if x is None else jnp.asarray(x) for x in (q_positions, k_positions)
    )
    blocks = Blocks(lay(indices), lay(valid), int(block_q), int(block_k))
    request = prepare(
        q, k, v, mods, mask, normalizer, scale, q_positions, k_positions, blocks, tokens
    )
    if block_k % (group := group_of(request.mods)):
        raise ValueError(
            f"{name}: block_k is {block_k}, expected a multiple of the mods' group {group}"
        )
    return request


def _check_entries(name: str, selection: Selection, n: int) -> None:
    if isinstance(selection.indices, Tracer) or isinstance(selection.valid, Tracer):
        return
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    wrong = valid & ((indices < 0) | (indices >= n))
    if wrong.any():
        at = tuple(int(x) for x in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}: selection.indices{list(at)} is {indices[at]}, expected 0 .. {n - 1}"
        )
    ordered = np.sort(np.where(valid, indices, -1 - np.arange(indices.shape[-1])), axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]).any(-1)
    if twice.any():
        at = tuple(int(x) for x in np.argwhere(twice)[0])
        raise ValueError(
            f"{name}: selection.indices{list(at)} lists a block twice, expected different blocks"
        )
