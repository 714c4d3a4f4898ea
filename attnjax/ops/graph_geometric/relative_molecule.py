"""Relative molecule attention: keys and values of pairs of atoms beside those of atoms.

    s_ij = (q_i . k_j + p_i . b_ij) / sqrt(H) + u . k_j + w . b_ij,    p_i = q_i + k_i
    out_i = sum_j softmax_j(s_ij) (v_j + c_ij)

b and c of each pair and head are two networks' of its features: the bond, how many bonds lie
between the atoms, and `bessel_basis` of their distance.

Paper: Maziarka et al., "Relative Molecule Self-Attention Transformer", 2021, arXiv:2110.05841;
code: gmum/huggingmolecules.
Limits: b = c = 0 and u = 0 is softmax attention.
Differs: the released code has u . k_i, which the softmax takes out again: u = 0. The networks, one
hidden layer of width H with leaky_relu of slope 0.1, and a dummy atom belong to a layer.
"""

import math

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.numerics import aligned, einsum, finite, repeat_heads, wide
from attnjax.core.pairwise.attend import attend, attention_weights
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, fill
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V

Heads = Float[Array, "N H"]


@on_any_mesh
def relative_molecule_attention(
    q: Q,
    k: K,
    v: V,
    p: Q,
    pair_keys: Float[Array, "B T _ N H"],
    pair_values: Float[Array, "B T _ N D"],
    u: Heads,
    w: Heads,
    *,
    mask: masks.Mask = masks.everything,
) -> Out:
    """Attention of atoms with b = pair_keys (B,i,j,N,H) and c = pair_values (B,i,j,N,D).

    p is what meets the pairs, the sum of an atom's query and key in the paper.  O(T S) vectors of
    pairs come in, and as many weights are formed.
    """
    keys, meets = repeat_heads(finite(k), q), finite(p)
    meets = meets / math.sqrt(q.shape[-1]) + aligned(w, meets)
    of_pairs = einsum("BTNH,BTSNH->BNTS", meets, finite(pair_keys))
    of_keys = jnp.sum(keys * aligned(u, keys), axis=-1)
    terms = mods.pair_bias(of_pairs), mods.mod(lambda score, x: score + x, key=of_keys)
    dtype, (q, k) = q.dtype, (wide(q), wide(k))
    weights = attention_weights(q, k, mods=terms, mask=mask)
    moved = einsum("BNTS,BTSND->BTND", weights, finite(pair_values))
    return (attend(q, k, wide(v), mods=terms, mask=mask) + moved).astype(dtype)


def bessel_basis(
    distance: Float[Array, "*B T S"], count: int, cutoff: float, exponent: int = 5
) -> Float[Array, "*B T S R"]:
    """envelope(d / cutoff) sin(n pi d / cutoff) of n = 1 .. count, smooth and 0 beyond the cutoff.

    The envelope is 1/x - (p+1)(p+2)/2 x^(p-1) + p (p+2) x^p - p (p+1)/2 x^(p+1), p = exponent + 1.
    """
    x = (wide(distance)[..., None] + 1e-6) / cutoff  # as released: an atom's own distance is no 0
    p = exponent + 1
    bend = 1 / x - (p + 1) * (p + 2) / 2 * x ** (p - 1) + p * (p + 2) * x**p
    bend = bend - p * (p + 1) / 2 * x ** (p + 1)
    rate = aligned(jnp.asarray(np.pi * np.arange(1, count + 1), x.dtype), x)
    return jnp.where(x < 1, bend * jnp.sin(rate * x), 0.0)


_NO_PAIRS = {
    "pair_keys": Draw(lambda slot: slot.normal("B T S N H", 0.0)),
    "pair_values": Draw(lambda slot: slot.normal("B T S N D", 0.0)),
}
OPS = (
    Op(
        relative_molecule_attention,
        papers=(166,),
        draw={
            "pair_keys": Draw(lambda slot: slot.normal("B T S N H")),
            "pair_values": Draw(lambda slot: slot.normal("B T S N D")),
        },
        limits=(
            Limit(
                "without pairs and u it is softmax attention",
                {**_NO_PAIRS, "u": fill(0.0)},
                multi_head_attention,
            ),
        ),
    ),
)
