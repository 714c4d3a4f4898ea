"""Infini-attention: softmax within a segment, a compressive memory of all segments before it.

    M_s = M_{s-1} + phi(K_s)^T V_s,    z_s = z_{s-1} + sum_t phi(k_t),    phi(x) = elu(x) + 1
    A_mem = phi(q) M_{s-1} / (phi(q) . z_{s-1}),    zero in the first segment
    out = sigmoid(beta) A_mem + (1 - sigmoid(beta)) A_local,    A_local causal in the segment

Paper: Munkhdalai, Faruqui and Gopal, "Leave No Context Behind: Efficient Infinite Context
Transformers with Infini-attention", 2024, arXiv:2404.07143, section 2.1.
Limits: beta -> -inf is causal softmax attention within segments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import features, masks
from attnjax.core.chunks import cut, scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import divide, einsum, repeat_heads, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import State
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Float, K, Out, PerHead, Q, TokenK, TokenV, V

Code = Callable[[Array], Array]  # a position code of (B,T,N,H), such as a rotary one
Update = Callable[[State, Array, Array], Array]  # (state, keys, values) -> what is added for them


@on_any_mesh
def infini_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerHead,
    *,
    segment: int = 2048,
    code: Code = features.identity,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """`code` acts on the q and k of the local part alone; beta (N,) is learned.

    A state stands for whole segments: a run may be split where one ends, and nowhere else.
    """
    out, state = by_segments(_values, q, k, v, beta, segment, code, state)
    return (out, state) if return_state else out


def _values(state: State, keys: Array, values: Array) -> Array:
    """Values are added as they are."""
    return values


@compiled("update", "segment", "code")
def by_segments(
    update: Update, q: Q, k: K, v: V, beta: PerHead, segment: int, code: Code, state: State | None
) -> tuple[Out, State]:
    """Infini-attention with any rule of what a segment adds to the memory."""
    size = min(segment, q.shape[1])
    k, v = repeat_heads(k, q), repeat_heads(v, q)
    queries, keys, values = features.elu1(wide(q)), features.elu1(wide(k)), wide(v)
    if state is None:
        B, _, N, H = keys.shape
        memory = jnp.zeros((B, N, H, v.shape[-1]), keys.dtype)
        state = State(memory, jnp.zeros((B, N, H), keys.dtype))

    def over_segment(state: State, tokens: tuple[Array, Array, Array]) -> tuple[State, Array]:
        queries, keys, values = tokens
        past = recall(state, queries)
        return _write(state, keys, update(state, keys, values)), past

    last, past = scan_chunks(over_segment, state, (queries, keys, values), size)
    local = wide(_within_segments(code(q), code(k), v, size))
    gate = jax.nn.sigmoid(wide(beta))[None, None, :, None]
    return (gate * past + (1 - gate) * local).astype(v.dtype), last


def _write(state: State, keys: Array, values: Array) -> State:
    """The memory with the keys (B,t,N,H), after phi, and values (B,t,N,D) of a segment added."""
    new = einsum("BtNH,BtND->BNHD", keys, values)
    return State(state.memory + new, _denominator(state) + keys.sum(axis=1))


def recall(state: State, x: Array) -> Array:
    """What the memory says of keys or queries x (B,t,N,H), after phi; zero while it is empty."""
    values = einsum("BtNH,BNHD->BtND", x, state.memory)
    total = einsum("BtNH,BNH->BtN", x, _denominator(state))
    return divide(values, total[..., None])


def _denominator(state: State) -> Float[Array, "B N H"]:
    assert state.denominator is not None  # `by_segments` always keeps one
    return state.denominator


def _within_segments(q: Q, k: K, v: V, size: int) -> Out:
    """Causal softmax attention, each segment a sequence of its own."""
    B, T, N, _ = q.shape
    parts = [cut(x, size) for x in (q, k, v)]
    parts = [x.reshape(B * x.shape[1], *x.shape[2:]) for x in parts]
    out = attend(*parts, mask=masks.causal)
    return out.reshape(B, -(-T // size) * size, N, out.shape[-1])[:, :T]


def local_limit(q: Q, k: K, v: V, beta: PerHead, segment: int) -> Out:
    """Causal softmax attention within segments."""
    return attend(q, k, v, mask=masks.causal & masks.document(np.arange(q.shape[1]) // segment))


INPUTS = {"segment": 4}
LIMITS = (Limit("beta -> -inf is local attention", {"beta": fill(-100.0)}, local_limit),)
EXEMPT = {"split": "a state stands for whole segments: runs are split where one ends"}
OPS = (Op(infini_attention, papers=(135,), draw=INPUTS, limits=LIMITS, exempt=EXEMPT),)
