"""MesaNet: each token reads the map from keys to values that fits the past best, ridge regression.

    G_t = a_t G_{t-1} + beta_t k_t k_t^T,    S_t = a_t S_{t-1} + beta_t k_t v_t^T
    o_t = (G_t + diag(ridge))^-1 q_t . S_t

with q and k of length 1 and a_t = exp(log_decay_t): S_t multiplied by the inverse minimizes
sum_j fade_j beta_j |v_j - W k_j|^2 + |W sqrt(ridge)|^2. The systems of all tokens are solved at
once by conjugate gradients, each step of which is one linear attention with values beta k.

Paper: von Oswald et al., "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", 2025,
arXiv:2506.05233.
Limits: beta = 0 remembers nothing.
Differs: derivatives are those of the exact solution, and solve systems of their own; an iteration
that has converged stops, where released code adds 1e-5 to what it divides by. The short
convolutions, ridge = softplus(x) + 1/4, the norm of the output and its gate belong to a layer.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from attnjax.core import features
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import aligned, repeat_heads, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill, log_gates, uniform
from attnjax.typing import Array, Float, Out, PerQuery, Q, TokenK, TokenV


@on_any_mesh
@compiled("iterations", "return_state", "impl")
def mesa_net(
    q: Q,
    k: TokenK,
    v: TokenV,
    beta: PerQuery,
    log_decay: PerQuery,
    ridge: Float[Array, "N H"],
    *,
    iterations: int = 30,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Linear attention whose queries are whitened by the keys so far.

    ridge > 0 is the weight of what the keys have not shown; iterations, of conjugate gradients. The
    state's memory is (B,N,H,H+D): G, then S.
    """
    H = q.shape[-1]
    keys = repeat_heads(features.cosine(wide(k)), q)
    strength = wide(beta)[..., None]
    grams, sums = strength * keys, strength * repeat_heads(wide(v), q)
    options: dict[str, Any] = {"log_decay": log_decay, "documents": documents, "impl": impl}
    before = None if state is None else state._replace(memory=state.memory[..., :H])

    def system(x: Array) -> Array:
        return linear_attend(x, keys, grams, state=before, **options) + aligned(ridge, x) * x

    solve = lambda system, b: _conjugate_gradients(system, b, iterations)
    x = lax.custom_linear_solve(system, features.cosine(wide(q)), solve, symmetric=True)
    both = jnp.concatenate([grams, sums], axis=-1)
    out, last = linear_attend(x, keys, both, state=state, return_state=True, **options)
    out = out[..., H:].astype(v.dtype)
    return (out, last) if return_state else out


def _conjugate_gradients(system: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """The solution for every token, (B,T,N,H); where it is exact to rounding it stays."""
    dot = lambda x, y: jnp.sum(x * y, axis=-1, keepdims=True)
    enough = jnp.finfo(b.dtype).eps ** 2 * dot(b, b)

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, rest, way = carry
        ahead, left = system(way), dot(rest, rest)
        going = left > enough
        size = jnp.where(going, left / jnp.where(going, dot(way, ahead), 1.0), 0.0)
        x, after = x + size * way, rest - size * ahead
        turn = jnp.where(going, dot(after, after) / jnp.where(going, left, 1.0), 0.0)
        return x, after, after + turn * way

    return lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b))[0]


def _zeros(q: Q, v: TokenV) -> Out:
    return jnp.zeros((*q.shape[:-1], v.shape[-1]))


OPS = (
    Op(
        mesa_net,
        draw={
            "beta": uniform(0.1, 0.9),
            "log_decay": log_gates,
            "ridge": uniform(0.3, 1.5),
            "iterations": 12,
        },
        limits=(
            Limit(
                "beta = 0 remembers nothing",
                {"beta": fill(0.0)},
                _zeros,
            ),
        ),
    ),
)
