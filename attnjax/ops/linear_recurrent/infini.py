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
from attnjax.core.numerics import divide, repeat_heads, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import State
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, K, Out, PerHead, Q, TokenK, TokenV, V

Code = Callable[[Array], Array]  # a position code of (B,T,N,H), such as a rotary one
Update = Callable[[State, Array, Array], Array]  # (state, keys, values) -> what is added for them
uncoded: Code = lambda x: x


def infini_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerHead,
    *,
    segment: int = 2048,
    code: Code = uncoded,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """`code` acts on the q and k of the local part alone; beta (N,) is learned.

    A state stands for whole segments: a run may be split where one ends, and nowhere else.
    """
    out, state = by_segments(lambda state, k, v: v, q, k, v, beta, segment, code, state)
    return (out, state) if return_state else out


def by_segments(
    update: Update, q: Q, k: K, v: V, beta: PerHead, segment: int, code: Code, state: State | None
) -> tuple[Out, State]:
    """Infini-attention with any rule of what a segment adds to the memory."""
    (B, T, N, H), D, size = q.shape, v.shape[-1], min(segment, q.shape[1])
    heads = lambda x: repeat_heads(x, q)

    def over_segment(state: State, tokens: tuple[Array, Array, Array]) -> tuple[State, Array]:
        q, k, v = tokens
        new = jnp.einsum("BtNH,BtND->BNHD", k, update(state, k, v), precision="highest")
        denominator = state.denominator + k.sum(1)  # pyright: ignore
        return State(state.memory + new, denominator), recall(state, q)

    phi = lambda x: features.elu1(wide(x))
    tokens = phi(q), phi(heads(k)), wide(heads(v))
    if state is None:
        zeros = lambda *shape: jnp.zeros(shape, tokens[1].dtype)
        state = State(zeros(B, N, H, D), zeros(B, N, H))
    last, past = scan_chunks(over_segment, state, tokens, size)
    rows = lambda x: cut(x, size).reshape(-1, size, *x.shape[2:])
    local = attend(rows(code(q)), rows(code(k)), rows(v), mask=masks.causal)
    local = wide(local.reshape(B, -1, N, D)[:, :T])
    gate = jax.nn.sigmoid(wide(beta))[:, None]
    return (gate * past + (1 - gate) * local).astype(v.dtype), last


def recall(state: State, x: Array) -> Array:
    """What the memory says of keys or queries x (B,t,N,H), after phi; zero while it is empty."""
    values = jnp.einsum("BtNH,BNHD->BtND", x, state.memory, precision="highest")
    denominator = jnp.einsum("BtNH,BNH->BtN", x, state.denominator, precision="highest")
    return divide(values, denominator[..., None])


def local_limit(q: Q, k: K, v: V, beta: PerHead, segment: int) -> Out:
    """Causal softmax attention within segments."""
    return attend(q, k, v, mask=masks.causal & masks.document(np.arange(q.shape[1]) // segment))


INPUTS = {"segment": 4}
LIMITS = (Limit("beta -> -inf is local attention", {"beta": fill(-100.0)}, local_limit),)
EXEMPT = {"split": "a state stands for whole segments: runs are split where one ends"}
OPS = (Op(infini_attention, papers=(135,), draw=INPUTS, limits=LIMITS, exempt=EXEMPT),)
