"""Titans' neural memory: a small network that learns, while it reads, to give a key's value.

    S_t = eta_t S_{t-1} - theta_t g_t,    M_t = (1 - alpha_t) M_{t-1} + S_t,    y_t = M_t(q_t)
    g_t = gradient of |M(k_t) - v_t|^2 with respect to M, at the M of the end of the chunk before

Chunks of one token are the recurrence.  In longer ones all gradients are taken at one memory, so
that both recurrences are linear and run in parallel.

Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", 2024,
arXiv:2501.00663, section 3.
Limits: theta = alpha = 0 leaves the network as it is; a matrix from zero with eta = alpha = 0 and
chunks of one token is the delta rule of strength 2 theta.
Differs: projections, convolutions and norms of q, k and v belong to a layer.  There are no packed
documents: what learns in chunks would begin one with each, at another place in every row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.chunks import scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import matmul, repeat_heads, wide
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.scan.diagonal import linear_scan
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, fill, normal, uniform
from attnjax.typing import Array, Float, K, PerQuery, Q, TokenK, TokenV, V

Network = tuple[Float[Array, "N _ _"], ...]  # matrices of each head, silu between; one is linear
Matrices = tuple[Float[Array, "_ _"], ...]  # those of one head


class State(NamedTuple):
    """M and S, each (B,N,...)."""

    memory: Network
    momentum: Network


class Tokens(NamedTuple):
    """What a head reads of each token."""

    q: Float[Array, "*B C H"]
    k: Float[Array, "*B C H"]
    v: Float[Array, "*B C D"]
    eta: Float[Array, "*B C"]
    theta: Float[Array, "*B C"]
    alpha: Float[Array, "*B C"]


@on_any_mesh
@compiled("chunk", "return_state")
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
    T = q.shape[1]
    chunk = min(chunk, T)
    keys, values = repeat_heads(k, q), repeat_heads(v, q)
    tokens = Tokens(*map(wide, (q, keys, values, eta, theta, alpha)))
    whole = T - T % chunk
    first = jax.tree.map(lambda x: x[:, :whole], tokens)
    start = _untrained(weights, len(q)) if state is None else state
    last, out = scan_chunks(jax.checkpoint(_learn), start, first, chunk)
    if whole < T:  # tokens that filled a chunk up would decay the momentum
        last, rest = _learn(last, jax.tree.map(lambda x: x[:, whole:], tokens))
        out = jnp.concatenate([out, rest], axis=1)
    out = out.astype(v.dtype)
    return (out, last) if return_state else out


def _untrained(weights: Network, examples: int) -> State:
    memory = tuple(jnp.broadcast_to(wide(w), (examples, *w.shape)) for w in weights)
    return State(memory, jax.tree.map(jnp.zeros_like, memory))


def _learn(state: State, tokens: Tokens) -> tuple[State, Float[Array, "B C N D"]]:
    """One chunk: the state after it, and y.  Tokens (B,C,N,...)."""
    heads = jax.vmap(_learn_head, in_axes=(0, 1), out_axes=(0, 1))
    return jax.vmap(heads)(state, tokens)


def _learn_head(state: State, tokens: Tokens) -> tuple[State, Float[Array, "C D"]]:
    """One chunk of one head of one example: states of (...), tokens of (C,...)."""
    eta, theta, alpha = (gate[:, None, None] for gate in tokens[3:])
    surprise = jax.vmap(jax.grad(_loss), (None, 0, 0))(state.memory, tokens.k, tokens.v)
    momentum = tuple(
        linear_scan(eta, -theta * g, start)
        for g, start in zip(surprise, state.momentum, strict=True)
    )
    memory = tuple(
        linear_scan(1 - alpha, s, start) for s, start in zip(momentum, state.memory, strict=True)
    )
    last = jax.tree.map(lambda x: x[-1], State(memory, momentum))
    return last, jax.vmap(network)(memory, tokens.q)


def _loss(memory: Matrices, k: Float[Array, " H"], v: Float[Array, " D"]) -> Float[Array, ""]:
    return jnp.sum(jnp.square(network(memory, k) - v))


def network(weights: Matrices, x: Array) -> Array:
    """x w for one matrix, silu(x w_1) w_2 for two, and so on."""
    for w in weights[:-1]:
        x = jax.nn.silu(matmul(x, w))
    return matmul(x, weights[-1])


def _fixed(q: Q, weights: Network) -> Array:
    return jnp.moveaxis(network(weights, jnp.moveaxis(q, 2, 1)), 1, 2)


def _delta(q: Q, k: K, v: V, theta: PerQuery) -> Array:
    return linear_attend(q, k, v, beta=2 * theta)


def _mlp(slot: Slot) -> tuple[np.ndarray, ...]:
    return slot.normal("N H M", 0.4), slot.normal("N M D", 0.4)


def _matrix_of_zeros(slot: Slot) -> tuple[np.ndarray, ...]:
    return (slot.normal("N H D", 0.0),)


_GATES = {"eta": uniform(0.0, 1.0), "theta": uniform(0.0, 0.2), "alpha": uniform(0.0, 0.5)}
OPS = (
    Op(
        titans_memory,
        papers=(313,),
        draw={"k": normal(0.3), **_GATES, "weights": Draw(_mlp), "chunk": 4},
        limits=(
            Limit(
                "no step, no forgetting: a fixed network",
                {"theta": fill(0.0), "alpha": fill(0.0)},
                _fixed,
            ),
            Limit(
                "a matrix that only steps follows the delta rule",
                {
                    "eta": fill(0.0),
                    "alpha": fill(0.0),
                    "weights": Draw(_matrix_of_zeros),
                    "chunk": 1,
                },
                _delta,
            ),
        ),
        exempt={"split": "a state stands for whole chunks: runs are split where one ends"},
    ),
)
