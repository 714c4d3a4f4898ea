"""Recurrent attention network: windows read in turn, a cell that carries what they said.

    X = norm([c; window]),  A = swish(W_o attention(swish(W_q X), swish(W_k X), swish(W_v X)))
    Z = norm(A + gate(X)),  gate(x) = (x A_1 + a_1) sigmoid(x A_2 + a_2)
    g = standard(Z_0),  h = standard(Z_1..),   standard(x) = (x - mean(x)) / sqrt(mean(x^2))
    the next c:  g after the first window, norm(g + gate(g of the window before)) after the others
    review of all tokens:  norm(swish(W_o attention(q; cells)) + gate(q)),  q = swish(W_q h)

with biases; rotary positions start anew in each window, the cell stands at 0.

Paper: Li et al., "Recurrent Attention Networks for Long-text Modeling", 2023, arXiv:2306.06843;
code: 4AI/RAN.
Limits: none but the oracle.
Differs: as in the code `standard` divides by the root mean square, and the first cell, the norm of
a map of zero, is a vector that is learned. Rotary positions pair channels h and h + H/2, there
neighbors: a fixed permutation.
"""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid, silu

from attnjax.core import masks
from attnjax.core.chunks import by_chunk, in_a_row
from attnjax.core.numerics import Affine, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.positions import rotary
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Op
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
Cell = Float[Array, "B W"]
_EPS = 1e-7


class Gate(NamedTuple):
    """gate(x)."""

    value: Annotated[Affine, "W W"]
    gate: Annotated[Affine, "W W"]

    def __call__(self, x: Array) -> Array:
        return self.value(x) * sigmoid(self.gate(x))


class Recurrent(NamedTuple):
    """Weights of the windows; E = N H for N heads."""

    start: Float[Array, " W"]
    join_norm: Norm
    q: Annotated[Affine, "W E"]
    k: Annotated[Affine, "W E"]
    v: Annotated[Affine, "W E"]
    out: Annotated[Affine, "E W"]
    gate: Gate
    out_norm: Norm
    cell_gate: Gate
    cell_norm: Norm


class Review(NamedTuple):
    """Weights of the review."""

    q: Annotated[Affine, "W W"]
    k: Annotated[Affine, "W W"]
    v: Annotated[Affine, "W W"]
    out: Annotated[Affine, "W W"]
    gate: Gate
    norm: Norm


@of_whole_text
@on_any_mesh
def recurrent_attention(
    x: Tokens,
    weights: Recurrent,
    *,
    heads: int,
    window: int = 256,
    least: int = 16,
    inside: masks.Mask = masks.everything,
    return_cells: bool = False,
    impl: Impl = None,
) -> Any:
    """h (B,T,W), or (h, all g (B,M,W), the last c (B,W)): what stands for a text.

    heads    N
    least    a last window of fewer tokens is part of the one before
    inside   who sees whom in a window, where the cell is token 0: `masks.causal` for a language
             model
    """
    if not 0 <= least <= window or window < 1:
        raise ValueError(f"window, least: {window}, {least}; expected 1 at least, and 0 to window")
    lengths = window_lengths(x.shape[1], window, least)

    def step(state: tuple[Cell, Cell], tokens: Tokens) -> tuple[Any, tuple[Tokens, Cell]]:
        cell, before = state
        new, out = _window(cell, tokens, weights, heads, inside, impl)
        joined = weights.cell_norm.of_tokens(new + weights.cell_gate(before), _EPS)
        return (joined, new), (out, new)

    start = jnp.broadcast_to(wide(weights.start)[None], (len(x), x.shape[-1]))
    first, equal = lengths[0], lengths[1:].count(window)
    cell, out = _window(start, x[:, :first], weights, heads, inside, impl)
    state, outs, cells, done = (cell, cell), [out], [cell[:, None]], first + equal * window
    if equal:
        state, (out, new) = lax.scan(step, state, by_chunk(x[:, first:done], window))
        outs.append(in_a_row(out, done - first))
        cells.append(jnp.moveaxis(new, 0, 1))
    if done < x.shape[1]:
        state, (out, new) = step(state, x[:, done:])
        outs.append(out)
        cells.append(new[:, None])
    h = jnp.concatenate(outs, axis=1).astype(x.dtype)
    return (h, jnp.concatenate(cells, axis=1), state[0]) if return_cells else h


def window_lengths(T: int, window: int, least: int) -> list[int]:
    """How many tokens each window has."""
    whole, rest = divmod(T, window)
    if not whole or (rest and rest >= least):
        return [window] * whole + [rest]
    return [window] * (whole - 1) + [window + rest]


def _window(
    cell: Cell, x: Tokens, w: Recurrent, heads: int, inside: masks.Mask, impl: Impl
) -> tuple[Cell, Tokens]:
    """g and h."""
    y = w.join_norm.of_tokens(jnp.concatenate([cell[:, None], wide(x)], axis=1), _EPS)
    q, k, v = (silu(f(y)) for f in (w.q, w.k, w.v))
    split = lambda z: z.reshape(*z.shape[:2], heads, z.shape[2] // heads)
    places = jnp.arange(y.shape[1])
    q, k = (rotary(split(z), places) for z in (q, k))
    read = attend(q, k, split(v), mask=inside, impl=impl)
    read = silu(w.out(read.reshape(v.shape)))
    z = _standard(w.out_norm.of_tokens(read + w.gate(y), _EPS))
    return z[:, 0], z[:, 1:]


def _standard(x: Array) -> Array:
    mean, square = (y.mean(-1, keepdims=True) for y in (x, jnp.square(x)))
    return (x - mean) * lax.rsqrt(square + _EPS)


@on_any_mesh
def memory_review(
    h: Tokens, cells: Float[Array, "B M W"], weights: Review, *, impl: Impl = None
) -> Tokens:
    """What each token reads from the cells of all windows, later ones too."""
    w = weights
    q, k, v = silu(w.q(h)), silu(w.k(cells)), silu(w.v(cells))
    read = attend(q[:, :, None], k[:, :, None], v[:, :, None], impl=impl)[:, :, 0]
    return w.norm.of_tokens(silu(w.out(read)) + w.gate(q), _EPS).astype(h.dtype)


OPS = (
    Op(
        recurrent_attention,
        papers=(125,),
        reads="all",
        draw={"heads": 2, "window": 3, "least": 2},
        sizes={"E": 8},
    ),
    Op(memory_review, papers=(125,)),
)
