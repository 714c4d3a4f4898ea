"""Mamba-3: a state space model by the trapezoidal rule, whose state turns as it fades.

    S_t = a_t S_{t-1} + a_t (1 - l_t) dt_t k'_{t-1} v_{t-1}^T + l_t dt_t k'_t v_t^T
    o_t = q'_t . S_t
    k'_t = R(phi_t) k_t,    q'_t = R(phi_t) q_t,    phi_t = phi_{t-1} + dt_t angle_t

with a_t = exp(log_decay_t), l_t = trap_t, and R(phi) turning channels 2r and 2r + 1 by phi_r: the
transition of a complex state, moved to q and k as a rotary embedding that depends on the data. With
several ranks (MIMO) a token writes M keys and values and reads M times, all after the last write.

Paper: Lahoti et al., "Mamba-3: Improved Sequence Modeling using State Space Principles", 2026,
arXiv:2603.15569; code: state-spaces/mamba.
Limits: trap = 1 and angle = 0 is simple_gla of values dt v; one rank of MIMO is mamba3.
Differs: log_decay = -dt f(x), trap = sigmoid(x) and angle = pi tanh(x), the norms and biases of k
and q, the skip connection, the gate and, around the ranks, v_r = v m_r and out = sum_r o_r n_r with
learned vectors m_r, n_r, belong to a layer. The released kernel of several ranks pairs channels h
and h + H/2, a fixed permutation. On several devices each gets all keys and values, of which it
needs those of the token before its first.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import cumsum, on_any_mesh, sharding_of
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.typing import Array, Bool, Float, Int, Out, PerQuery, Q, TokenK, TokenV

Angles = Float[Array, "B T N R"]


class Mamba3State(NamedTuple):
    """S, with what the next token needs of the last: its key, turned, its value, and phi."""

    linear: State
    key: Float[Array, "B N M H"]
    value: Float[Array, "B N M D"]
    angle: Float[Array, "B N R"]


@on_any_mesh
def mamba3(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerQuery,
    dt: PerQuery,
    trap: PerQuery,
    angle: Angles,
    *,
    documents: Documents | None = None,
    state: Mamba3State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Steps dt > 0 of a rule between Euler's, trap = 1, and the trapezoid's, trap = 1/2.

    angle, R <= H / 2 of each head, is in radians for a step of one; channels from 2 R on stay. A
    token behind padding or another document has no token before it.
    """
    q, k, v = (x[:, :, :, None] for x in (q, k, v))
    out, last = _by_rank(q, k, v, log_decay, dt, trap, angle, documents, state, impl)
    out = out[:, :, :, 0]
    return (out, last) if return_state else out


@on_any_mesh
def mamba3_mimo(
    q: Float[Array, "B T N M H"],
    k: Float[Array, "B T K M H"],
    v: Float[Array, "B T K M D"],
    log_decay: PerQuery,
    dt: PerQuery,
    trap: PerQuery,
    angle: Angles,
    *,
    documents: Documents | None = None,
    state: Mamba3State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """mamba3 with M keys, values and queries a token, (B,T,N,M,D): what each query reads."""
    out, last = _by_rank(q, k, v, log_decay, dt, trap, angle, documents, state, impl)
    return (out, last) if return_state else out


def _by_rank(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    dt: Array,
    trap: Array,
    angle: Array,
    documents: Documents | None,
    state: Mamba3State | None,
    impl: Impl,
) -> tuple[Array, Mamba3State]:
    """Tokens of M ranks, (B,T,N or K,M,...): o and the state.

    Each rank is a token of the engine, which writes twice and reads behind the last rank.
    """
    (B, T, N, M, H), dtype = q.shape, v.dtype
    k, v = repeat_heads(wide(k), q), repeat_heads(wide(v), q)
    key, value, phi = _start(state, k, v, angle)
    log_decay, dt, trap, steps = map(wide, (log_decay, dt, trap, angle))
    steps = dt[..., None] * steps
    ids = None if documents is None else jnp.broadcast_to(jnp.asarray(documents), (B, T))
    if ids is not None:  # padding neither turns nor writes
        real = lambda x: jnp.where(_like(ids >= 0, x), x, 0.0)
        k, v, steps = real(k), real(v), real(steps)
    phi = phi[:, None] + cumsum(steps, impl)
    q, k = _turned(wide(q), phi), _turned(k, phi)
    old_k, old_v = _behind(key, k, impl), _behind(value, v, impl)
    if ids is not None:
        same = ids == _behind(_document(state, ids), ids, impl)
        old_k, old_v = (jnp.where(_like(same, x), x, 0.0) for x in (old_k, old_v))
    per_rank = lambda x: x[..., None, None]
    old_k = per_rank(jnp.exp(log_decay) * (1 - trap) * dt) * old_k
    keys, values = (
        jnp.moveaxis(jnp.stack(pair, axis=4), 2, 4).reshape(B, 2 * M * T, N, pair[0].shape[-1])
        for pair in ((old_k, per_rank(trap * dt) * k), (old_v, v))
    )
    first = (np.arange(2 * M) == 0)[None, None, :, None]
    out, linear = linear_attend(
        jnp.moveaxis(q, 2, 3).reshape(B, M * T, N, H),
        keys,
        values,
        log_decay=jnp.where(first, log_decay[:, :, None], 0.0).reshape(B, 2 * M * T, N),
        block=M,
        writes=2,
        documents=ids,
        state=None if state is None else state.linear,
        return_state=True,
        impl=impl,
    )
    out = jnp.moveaxis(out.reshape(B, T, M, N, v.shape[-1]), 3, 2).astype(dtype)
    last = lambda x: sharding_of(impl).gathered(x, 1)[:, -1]
    turn = last(phi)
    turn = turn - 2 * np.pi * jnp.floor(turn / (2 * np.pi))
    return out, Mamba3State(linear, last(k), last(v), turn)


def _start(state: Mamba3State | None, k: Array, v: Array, angle: Array) -> tuple[Array, ...]:
    """The key, the value and phi of the token before the first."""
    if state is not None:
        return state[1:]
    return tuple(jnp.zeros_like(wide(x)[:, 0]) for x in (k, v, angle))


def _turned(x: Array, phi: Array) -> Array:
    """x (B,T,N,M,H), channels 2r and 2r + 1 turned by phi (B,T,N,R)."""
    R, H = phi.shape[-1], x.shape[-1]
    if 2 * R > H:
        raise ValueError(f"mamba3: angle has R = {R}, expected at most H / 2 with H = {H}")
    cos, sin = jnp.cos(phi)[:, :, :, None], jnp.sin(phi)[:, :, :, None]
    even, odd = x[..., 0 : 2 * R : 2], x[..., 1 : 2 * R : 2]
    planes = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return jnp.concatenate([planes.reshape(*x.shape[:-1], 2 * R), x[..., 2 * R :]], axis=-1)


def _behind(first: Array, x: Array, impl: Impl) -> Array:
    """What the token before each has of x (B,T,...), `first` for the first of all."""
    sharding = sharding_of(impl)
    every = jnp.concatenate([first[:, None], sharding.gathered(x, 1)[:, :-1]], axis=1)
    return sharding.own(every, 1)


def _document(state: Mamba3State | None, ids: Int[Array, "B T"]) -> Int[Array, " B"]:
    if state is None or state.linear.document is None:
        return jnp.full(ids.shape[:1], -1, ids.dtype)
    return state.linear.document.astype(ids.dtype)


def _like(per_token: Bool[Array, "B T"], x: Array) -> Array:
    return per_token.reshape(*per_token.shape, *(1,) * (x.ndim - 2))


def _values_by_step(q: Q, k: TokenK, v: TokenV, log_decay: PerQuery, dt: PerQuery) -> Out:
    values = dt[..., None] * repeat_heads(v, q)
    return simple_gla(q, repeat_heads(k, q), values, log_decay)


_DRAW = {
    "log_decay": log_gates,
    "dt": uniform(0.1, 1.0),
    "trap": uniform(0.1, 0.9),
}
OPS = (
    Op(
        mamba3,
        draw=_DRAW,
        sizes={"R": 3},
        limits=(
            Limit(
                "trap = 1 without turning is simple_gla of dt v",
                {"trap": fill(1.0), "angle": fill(0.0)},
                _values_by_step,
            ),
        ),
    ),
    Op(
        mamba3_mimo,
        draw=_DRAW,
        sizes={"R": 3, "M": 3},
    ),
)
