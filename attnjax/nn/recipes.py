"""Layers of engine 2 by name: which gates and weights each op's paper computes from the input.

    nn.Recurrent(width, heads, recipes.gated_delta_net, rngs=rngs)

Where a gate begins is ours: near one for decays, so that a new layer remembers.
"""

import math

import jax
import jax.numpy as jnp

from attnjax.core import features
from attnjax.core.numerics import repeat_heads, wide
from attnjax.nn.recurrent import Gate, Recipe
from attnjax.ops import linear_recurrent as ops

_log_sigmoid = jax.nn.log_sigmoid


def _gentle(x: jax.Array) -> jax.Array:
    """log_sigmoid(x) / 16: the decays of GLA, near one."""
    return jax.nn.log_sigmoid(x) / 16


def _for_heads(v: jax.Array, q: jax.Array) -> jax.Array:
    """Each head of v repeated for the query heads that share it."""
    return repeat_heads(v, q)


_decay = Gate(_log_sigmoid, bias=4.0)
_beta = Gate(jax.nn.sigmoid)

linear_attention = Recipe(ops.linear_attention)
retention = Recipe(ops.retention)
lightning_attention = Recipe(
    lambda q, k, v, **kw: ops.lightning_attention(
        jax.nn.silu(q), jax.nn.silu(k), v, ops.lightning_log_decays(q.shape[2], 0, 2), **kw
    )
)
simple_gla = Recipe(ops.simple_gla, gates={"log_decay": _decay})
gla = Recipe(ops.gla, gates={"log_decay": Gate(_gentle, channels=True)})
hgrn2 = Recipe(
    lambda q, k, v, log_forget, **kw: ops.hgrn2(q, log_forget, _for_heads(v, q), **kw),
    gates={"log_forget": Gate(_log_sigmoid, bias=2.0, channels=True)},
)
delta_net = Recipe(ops.delta_net, gates={"beta": _beta})
gated_delta_net = Recipe(ops.gated_delta_net, gates={"beta": _beta, "log_decay": _decay})
kda = Recipe(ops.kda, gates={"beta": _beta, "log_decay": Gate(_gentle, channels=True)})
rwkv7 = Recipe(
    ops.rwkv7,
    gates={
        "log_decay": Gate(lambda x: -math.exp(-0.5) * jax.nn.sigmoid(x), bias=-4.0, channels=True),
        "removal": Gate(lambda x: x, channels=True),
        "rate": Gate(jax.nn.sigmoid, channels=True),
    },
)
mamba2 = Recipe(
    lambda q, k, v, dt, log_a, **kw: ops.mamba2(_for_heads(v, q), dt, -jnp.exp(log_a), k, q, **kw),
    gates={"dt": Gate(jax.nn.softplus, bias=-2.0)},
    weights={"log_a": lambda key, heads, width: jnp.log(jnp.linspace(1.0, 4.0, heads))},
)
rwkv6 = Recipe(
    ops.rwkv6,
    gates={"log_decay": Gate(lambda x: -jnp.exp(jnp.minimum(x, 4.0)), bias=-4.0, channels=True)},
    weights={"u": lambda key, heads, width: 0.5 * jax.random.normal(key, (heads, width))},
)
mlstm = Recipe(ops.mlstm, gates={"log_i": Gate(lambda x: x), "log_f": _decay})
regla = Recipe(
    ops.regla,
    gates={
        "gate": Gate(lambda x: x, bias=4.0, channels=True),
        "refine": Gate(lambda x: x, channels=True),
    },
)
cottention = Recipe(
    ops.cottention, weights={"m": lambda key, heads, width: 0.5 + jnp.zeros((heads,))}
)
flow_attention = Recipe(ops.flow_attention_causal)
fast_attention = Recipe(ops.fast_attention)
favor_attention = Recipe(
    lambda q, k, v, **kw: ops.favor_attention(
        q, k, v, features.orthogonal_rows(jax.random.key(0), 2 * q.shape[-1], q.shape[-1]), **kw
    )
)
_square = lambda key, heads, width: (
    jnp.eye(width) + 0.1 * jax.random.normal(key, (heads, width, width))
)
hedgehog_attention = Recipe(
    lambda q, k, v, w_q, w_k, **kw: ops.hedgehog_attention(
        q, _for_heads(k, q), _for_heads(v, q), w_q, w_k, **kw
    ),
    weights={"w_q": _square, "w_k": _square},
)
_near = Gate(lambda x: jax.nn.sigmoid(x), bias=-2.0)
titans = Recipe(
    lambda q, k, v, eta, theta, alpha, w, **kw: ops.titans_memory(
        features.cosine(wide(q)), features.cosine(wide(k)), v, eta, theta, alpha, (w,), **kw
    ),
    gates={"eta": _near, "theta": _near, "alpha": Gate(jax.nn.sigmoid, bias=-4.0)},
    weights={"w": lambda key, heads, width: jnp.zeros((heads, width, width))},
)

RECIPES: dict[str, Recipe] = {
    name: value for name, value in dict(globals()).items() if isinstance(value, Recipe)
}
