"""Multi-criteria token fusion: tokens that are alike, little looked at and small become one.

    a_j = mean of A_ij over heads and queries i,  A = softmax(q k^T / sqrt(H) + log s), s the sizes
    W_ij = ((1 + cos(x_i, x_j)) / 2)^(1/t_sim) (u_i u_j)^(1/t_info) (z_i z_j)^(1/t_size),
           u = min(a) / a,  z = min(s) / s,  i a token at an even place, j one at an odd place
    of `drop` tokens half, rounded down, are the even ones of largest max_j W_ij, and join that j;
    the others are the odd ones of largest max_i W_ij over even ones that are left, and join that i
    x'_g = sum over group g of a_j s_j x_j / sum of a_j s_j,  s'_g = sum of s_j

Paper: Lee et al., "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision
Transformers", 2024, arXiv:2403.10030, section 3; code: mlvlab/MCTF.
Limits: drop = 0 leaves every token alone.
Differs: groups stand in the order of the tokens that the others joined; in the code odd ones come
after the even ones, by falling score. Groups and weights have no gradient.

One-step-ahead attention reads A once, for the values V' of the fused tokens:
    groups = fusion_groups(x, a := token_mass(q, k, s), s, drop=r);  M = T - r
    out = attend(q, k, take_along_axis(V', groups[..., None, None], 1), mods=(size_bias(s, K),))
    fuse_tokens(out, a * s, groups, M) are the rows of attention of the M fused tokens
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import features, mods
from attnjax.core.blocks.block_maps import block_mass
from attnjax.core.numerics import divide, einsum, finite, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, by_sizes, uniform
from attnjax.typing import Array, Float, Int, Q, TokenK

Tokens = Float[Array, "B T W"]
PerToken = Float[Array, "B T"]
Groups = Int[Array, "B T"]


@on_any_mesh
def fusion_groups(
    tokens: Tokens,
    mass: PerToken,
    size: PerToken,
    *,
    drop: int = 16,
    protected: int = 1,
    t_sim: float = 1.0,
    t_info: float = 20.0,
    t_size: float = 40.0,
) -> Groups:
    """The number of the group of each token, 0 .. T - drop - 1.

    mass        a, see `token_mass`             size    how many tokens each stands for
    protected   how many first tokens, such as the class token, stay alone
    """
    T = tokens.shape[1]
    most = (T - protected) // 2
    if not 0 <= drop <= most:
        raise ValueError(f"drop: {drop}; expected 0 to {most} of T = {T} tokens")
    tokens, mass, size = (lax.stop_gradient(finite(x)) for x in (tokens, mass, size))
    unit = features.cosine(tokens)
    alike = einsum("BiW,BjW->Bij", unit[:, ::2], unit[:, 1::2])
    small = lambda x: x.min(1, keepdims=True) / x
    pairs = lambda x: x[:, ::2, None] * x[:, None, 1::2]
    fit = jnp.maximum((1.0 + alike) / 2, 0.0) ** (1 / t_sim)
    fit *= pairs(small(mass)) ** (1 / t_info) * pairs(small(size)) ** (1 / t_size)
    alone = np.arange(T) < protected
    fit = jnp.where((alone[::2, None] | alone[None, 1::2])[None], -jnp.inf, fit)
    joined, odd = _best(fit, drop // 2)
    left = jnp.where(joined[..., None], -jnp.inf, fit)
    joined_too, even = _best(jnp.swapaxes(left, 1, 2), drop - drop // 2)
    place = jnp.arange(T)[None]
    heads = jnp.zeros_like(mass, place.dtype)
    heads = heads.at[:, ::2].set(jnp.where(joined, 2 * odd + 1, place[:, ::2]))
    heads = heads.at[:, 1::2].set(jnp.where(joined_too, 2 * even, place[:, 1::2]))
    heads = jnp.take_along_axis(heads, heads, axis=1)  # who joined an odd one that joined on
    number = jnp.cumsum(heads == place, axis=1) - 1
    return jnp.take_along_axis(number, heads, axis=1)


def _best(fit: Float[Array, "B i j"], count: int) -> tuple[Array, Array]:
    """Whether each i is one of the `count` of largest fit, and the j that it is for, (B,i)."""
    chosen = lax.top_k(fit.max(-1), count)[1]
    numbers = jnp.arange(fit.shape[1]).reshape(1, 1, -1)
    return (chosen[..., None] == numbers).any(1), fit.argmax(-1)


@on_any_mesh
def fuse_tokens(
    tokens: Float[Array, "B T *rest"], weight: PerToken, groups: Groups, count: int
) -> Float[Array, "B M *rest"]:
    """The weighted mean of the tokens of each of `count` groups; `weight` has no gradient."""
    weight = lax.stop_gradient(wide(weight))
    member = jax.nn.one_hot(groups, count, dtype=weight.dtype) * weight[..., None]
    share = divide(member, member.sum(1, keepdims=True))
    return einsum("BTM,BT...->BM...", share, tokens).astype(tokens.dtype)


@on_any_mesh
def token_mass(q: Q, k: TokenK, size: PerToken) -> PerToken:
    """a: the mean weight of each token, over heads and queries; not differentiated."""
    T = q.shape[1]
    weights = block_mass(q, k, T, 1, mods=(size_bias(size, k.shape[2]),))
    return weights[:, 0].mean(1) / T


def size_bias(size: PerToken, heads: int) -> mods.Mod:
    """score + log s_j, for K heads: a token that stands for s tokens weighs as much as they."""
    return mods.mod(jnp.add, key=jnp.repeat(jnp.log(wide(size))[..., None], heads, axis=2))


def _each_alone(tokens: Tokens) -> Groups:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape[:2])


OPS = (
    Op(
        fusion_groups,
        papers=(15,),
        draw={"mass": uniform(0.05, 0.5), "size": uniform(1.0, 3.0), "drop": 3},
        limits=(Limit("drop = 0 leaves every token alone", {"drop": 0}, _each_alone),),
    ),
    Op(
        fuse_tokens,
        papers=(15,),
        draw={
            "weight": uniform(0.1, 1.0),
            "groups": by_sizes(lambda z: np.arange(z["B"] * z["T"]).reshape(z["B"], z["T"]) % 4),
            "count": 4,
        },
        sizes={"rest": 5},
    ),
)
