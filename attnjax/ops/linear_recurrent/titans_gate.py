"""Titans' "memory as a gate": a sliding window beside the neural memory, mixed by a gate.

    out = (1 - g) Window(q, [P_k, k], [P_v, v]) + g y,    g = sigmoid(gate)

y is what `titans_memory` read; P are learned tokens, the persistent memory, which all queries see.

Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", 2024,
arXiv:2501.00663, sections 3.3 and 4.2.
Limits: a closed gate and no persistent tokens leave sliding-window attention.
Differs: the paper multiplies both outputs, normalized by learned vectors, after a nonlinearity; a
gate that can close lets the window be alone.  The gate's network belongs to a layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted, fill
from attnjax.typing import Array, Float, K, Out, PerQuery, Q, V


class Persistent(NamedTuple):
    """Keys and values of the learned tokens; heads of k and v may share them."""

    k: Float[Array, "M K H"]
    v: Float[Array, "M K D"]


def prepend(learned: Float[Array, "M K H"], x: K) -> Float[Array, "B both K H"]:
    """The learned tokens, in x's dtype, before the tokens of every example."""
    B, M = len(x), len(learned)
    learned = repeat_heads(learned.astype(x.dtype)[None], like=x)
    return jnp.concatenate([jnp.broadcast_to(learned, (B, M, *x.shape[2:])), x], axis=1)


@of_whole_text
@on_any_mesh
def memory_as_gate(
    q: Q,
    k: K,
    v: V,
    memory: Out,
    gate: PerQuery,
    persistent: Persistent,
    *,
    window: int = 512,
    impl: Impl = None,
) -> Out:
    """A query sees `window` tokens, its own included; `memory` is what titans_memory gives."""
    M = len(persistent.k)
    near = attend(
        q,
        prepend(persistent.k, k),
        prepend(persistent.v, v),
        mask=masks.prefix(M) | masks.window(window - 1),
        q_positions=jnp.arange(q.shape[1]) + M,
        impl=impl,
    )
    g = jax.nn.sigmoid(wide(gate))[..., None]
    return ((1 - g) * wide(near) + g * wide(memory)).astype(v.dtype)


def _none(persistent: Persistent) -> Persistent:
    return Persistent(persistent.k[:0], persistent.v[:0])


def _window(q: Q, k: K, v: V, window: int) -> Out:
    return attend(q, k, v, mask=masks.window(window - 1))


OPS = (
    Op(
        memory_as_gate,
        papers=(313,),
        draw={"window": 3},
        limits=(
            Limit(
                "a closed gate and no persistent tokens leave sliding-window attention",
                {"gate": fill(-100.0), "persistent": adjusted(_none)},
                _window,
            ),
        ),
    ),
)
