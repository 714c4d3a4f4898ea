"""Titans' neural memory: a small network that learns, while it reads, to give a key's value.

    S_t = eta_t S_{t-1} - theta_t g_t,    M_t = (1 - alpha_t) M_{t-1} + S_t,    y_t = M_t(q_t)
    g_t = gradient of |M(k_t) - v_t|^2 with respect to M, at the M of the end of the chunk before

Chunks of one token are the recurrence.  In longer ones all gradients are taken at one memory, so
that both recurrences are linear and run in parallel.

Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", 2024,
arXiv:2501.00663, section 3.
Limits: theta = alpha = 0 leaves the network as it is; a matrix from zero with eta = alpha = 0 and
chunks of one token is the delta rule of strength 2 theta.
Differs: projections, convolutions and norms of q, k and v belong to a layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.scan.diagonal import linear_scan
from attnjax.op import Draw, Limit, Op, fill, normal, uniform
from attnjax.typing import Array, Float, K, PerQuery, Q, TokenK, TokenV, V

Network = tuple[Float[Array, "N _ _"], ...]  # matrices of each head, silu between; one is linear


class State(NamedTuple):
    memory: Network  # (B,N,...)
    momentum: Network


def titans_memory(
    q: Q,
    k: TokenK,
    v: TokenV,
    eta: PerQuery,
    theta: PerQuery,
    alpha: PerQuery,
    weights: Network,
    *,
    chunk: int = 16,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """The memory starts as `weights`.  Gates are in (0, 1); a state goes on where a chunk ends."""
    (B, T), chunk = q.shape[:2], min(chunk, q.shape[1])
    heads = lambda x: repeat_heads(wide(x), q)
    tokens = [jnp.moveaxis(heads(x), 1, 0) for x in (q, k, v, eta, theta, alpha)]
    if state is None:
        start = tuple(jnp.broadcast_to(wide(w), (B, *w.shape)) for w in weights)
        state = State(start, jax.tree.map(jnp.zeros_like, start))
    whole = T - T % chunk
    chunks = tuple(x[:whole].reshape(-1, chunk, *x.shape[1:]) for x in tokens)
    state, out = lax.scan(jax.checkpoint(_learn), state, chunks)
    out = out.reshape(whole, *out.shape[2:])
    if whole < T:
        state, rest = _learn(state, tuple(x[whole:] for x in tokens))
        out = jnp.concatenate([out, rest])
    out = jnp.moveaxis(out, 0, 1).astype(v.dtype)
    return (out, state) if return_state else out


def _learn(state: State, tokens: tuple[Array, ...]) -> tuple[State, Array]:
    """One chunk: q, k, v (C,B,N,...) and the gates (C,B,N)."""
    q, k, v, eta, theta, alpha = tokens
    each = lambda f, *axes: jax.vmap(jax.vmap(jax.vmap(f)), axes)  # token, example, head
    loss = lambda memory, k, v: jnp.sum(jnp.square(network(memory, k) - v))
    surprise = each(jax.grad(loss), None, 0, 0)(state.memory, k, v)
    step = lambda g, s: linear_scan(eta[..., None, None], -theta[..., None, None] * g, s)
    momentum = jax.tree.map(step, surprise, state.momentum)
    forget = lambda s, m: linear_scan(1 - alpha[..., None, None], s, m)
    memory = jax.tree.map(forget, momentum, state.memory)
    last = jax.tree.map(lambda x: x[-1], State(memory, momentum))
    return last, each(network, 0, 0)(memory, q)


def network(weights: Network, x: Array) -> Array:
    """x w for one matrix, silu(x w_1) w_2 for two, and so on."""
    for w in weights[:-1]:
        x = jax.nn.silu(jnp.matmul(x, w, precision="highest"))
    return jnp.matmul(x, weights[-1], precision="highest")


def _fixed(q: Q, weights: Network) -> Array:
    return jnp.moveaxis(network(weights, jnp.moveaxis(q, 2, 1)), 1, 2)


def _delta(q: Q, k: K, v: V, theta: PerQuery) -> Array:
    return linear_attend(q, k, v, beta=2 * theta)


_GATES = {"eta": uniform(0.0, 1.0), "theta": uniform(0.0, 0.2), "alpha": uniform(0.0, 0.5)}
_MLP = Draw(lambda slot: (slot.normal("N H M", 0.4), slot.normal("N M D", 0.4)))
_MATRIX = Draw(lambda slot: (slot.normal("N H D", 0.0),))
OPS = (
    Op(
        titans_memory,
        papers=(313,),
        draw={"k": normal(0.3), **_GATES, "weights": _MLP, "chunk": 4},
        limits=(
            Limit(
                "no step, no forgetting: a fixed network",
                {"theta": fill(0.0), "alpha": fill(0.0)},
                _fixed,
            ),
            Limit(
                "a matrix that only steps follows the delta rule",
                {"eta": fill(0.0), "alpha": fill(0.0), "weights": _MATRIX, "chunk": 1},
                _delta,
            ),
        ),
        exempt={"split": "a state stands for whole chunks: runs are split where one ends"},
    ),
)
