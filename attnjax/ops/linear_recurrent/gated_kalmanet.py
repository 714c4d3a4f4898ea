"""Gated KalmaNet: each token reads the ridge regression of all values on all keys of the past.

    G_t = a_t G_{t-1} + b_t^2 k_t k_t^T,    S_t = a_t S_{t-1} + b_t^2 k_t v_t^T
    x_t = (G_t + l_t I)^-1 q_t,    l_t = ridge |G_t|,    o_t = (mix_t x_t + (1 - mix_t) q_t) . S_t

with q and k of length 1, b_t = beta_t, a_t = exp(log_decay_t), and |G| the Frobenius norm.  So the
gain of a Kalman filter in its steady state is exact, where the delta rule takes the last key for
all.  The systems of all tokens are solved at once by Chebyshev iteration, which needs only that
their eigenvalues lie in [l_t, l_t + |G_t|]; each step of it is one linear attention.

Paper: Peng et al., "Gated KalmaNet: A Fading Memory Layer Through Test-Time Ridge Regression",
2025, arXiv:2511.21016.
Limits: mix = 0 is simple_gla of unit keys beta k and values beta v; beta = 0 remembers nothing.
Differs: derivatives are those of the exact solution, and solve systems of their own.  Released code
adds 1e-6 to beta and to lengths, and scales q by 1/sqrt(H), left out here; the short convolutions,
beta = sigmoid, mix = sigmoid, the norm of the output and its gate belong to a layer.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from attnjax.core import features
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import divide, repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.typing import Array, Float, Out, PerQuery, Q, TokenK, TokenV


@on_any_mesh
@compiled("iterations", "return_state", "impl")
def gated_kalmanet(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerQuery,
    log_decay: PerQuery,
    mix: PerQuery,
    *,
    ridge: float | Float[Array, ""] = 0.02,
    iterations: int = 30,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear attention whose queries are whitened by the keys so far, as much as `mix` says.

    The error of x falls with each iteration by a factor, 0.75 for a ridge of 0.02.  The state's
    memory is (B,N,H,H+D): G, then S.
    """
    H = q.shape[-1]
    strength = wide(beta)[..., None]
    keys = strength * repeat_heads(features.cosine(wide(k)), q)
    values = strength * repeat_heads(wide(v), q)
    query = features.cosine(wide(q))
    grams = None if state is None else state._replace(memory=state.memory[..., :H])
    options: dict[str, Any] = {"documents": documents, "impl": impl}
    size = _norms(keys, log_decay, grams, options)
    options["log_decay"] = log_decay

    def system(x: Array) -> Array:
        return linear_attend(x, keys, keys, state=grams, **options) + ridge * size * x

    solve = lambda system, b: _chebyshev(system, b, ridge, size, iterations)
    x = lax.custom_linear_solve(system, query, solve, symmetric=True)
    query = query + wide(mix)[..., None] * (x - query)
    both = jnp.concatenate([keys, values], axis=-1)
    out, last = linear_attend(query, keys, both, state=state, return_state=True, **options)
    out = out[..., H:].astype(v.dtype)
    return (out, last) if return_state else out


def _norms(keys: Array, log_decay: PerQuery, grams: State | None, options: dict) -> Array:
    """|G_t| of each token, (B,T,N,1), without the matrices.

    |a G + k k^T|^2 = a^2 |G|^2 + 2 a k G k + |k|^4, and k reads a k G k + |k|^4: a state of one
    number.
    """
    read = linear_attend(keys, keys, keys, log_decay=log_decay, state=grams, **options)
    own = jnp.square(jnp.sum(jnp.square(keys), axis=-1, keepdims=True))
    added = 2 * jnp.sum(keys * read, axis=-1, keepdims=True) - own
    ones = jnp.ones_like(added)
    before = None
    if grams is not None:
        square = jnp.sum(jnp.square(grams.memory), axis=(-2, -1), keepdims=True)
        before = grams._replace(memory=square)
    twice = 2 * log_decay
    square = linear_attend(ones, ones, added, log_decay=twice, state=before, **options)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _chebyshev(system: Any, b: Array, ridge: float | Array, size: Array, iterations: int) -> Array:
    """The solution for every token, zero where there is no system."""
    width = (1 + 2 * ridge) * size
    length = divide(jnp.full_like(size, 2.0), width)
    quarter = jnp.square(divide(size, width) / 2)

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, old, weight = carry
        weight = 1 / (1 - quarter * weight)
        new = weight * (x - length * (system(x) - b)) - (weight - 1) * old
        return new, x, weight

    start = length * b, jnp.zeros_like(b), jnp.full_like(size, 2.0)
    return lax.fori_loop(0, iterations, step, start)[0]


def _unit_sums(q: Q, k: TokenK, v: TokenV, beta: PerQuery, log_decay: PerQuery) -> Out:
    unit = lambda x: repeat_heads(features.cosine(x), q)
    square = jnp.square(beta)[..., None]
    return simple_gla(unit(q), unit(k), square * repeat_heads(v, q), log_decay)


def _zeros(q: Q, v: TokenV) -> Out:
    return jnp.zeros((*q.shape[:-1], v.shape[-1]))


OPS = (
    Op(
        gated_kalmanet,
        draw={
            "beta": uniform(0.3, 0.9),
            "log_decay": log_gates,
            "mix": uniform(0.1, 0.9),
            "ridge": 1.0,
            "iterations": 15,
        },
        limits=(
            Limit("mix = 0 is simple_gla of unit keys", {"mix": fill(0.0)}, _unit_sums),
            Limit("beta = 0 remembers nothing", {"beta": fill(0.0)}, _zeros),
        ),
    ),
)
