"""Group attention: softmax attention in which each key is replaced by the mean of its group.

    groups of keys by k-means: r_g the mean of the c_g keys of group g, u_g that of their values
    out_i = sum_g c_g exp(q_i . r_g / sqrt(H)) u_g / sum_h c_h exp(q_i . r_h / sqrt(H))

Paper: Liang et al., "RITA: Group Attention is All You Need for Timeseries Analytics", 2023,
arXiv:2306.01926, sections 4.2 to 4.4.
Limits: a group for each key is softmax attention.
Differs: in the released code an empty group is a key at 0 with a value of 0, here it is none. It
draws the first centers at random, here they are spread evenly unless `groups` names them. With all
keys within d of their mean, a weight is off by at most the factor exp(2 |q| d / sqrt(H)).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.core import mods
from attnjax.core.numerics import divide, einsum, finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, Int, K, Out, Q, V

Groups = int | Int[Array, " G"]


@of_whole_text
@on_any_mesh
def group_attention(
    q: Q, k: K, v: V, *, groups: Groups = 64, rounds: int = 3, impl: Impl = None
) -> Out:
    """Attention to groups of similar keys, in both directions; time O((T + rounds S) G).

    groups   how many, all keys if there are fewer; or the numbers of the keys (G,) that are the
             first centers, such as the first G of a random permutation
    rounds   how often keys are assigned to the nearest center, that of their last group

    Gradients reach keys through the means; who is in which group has none.
    """
    group, G = key_groups(k, groups=groups, rounds=rounds), _count(groups, k.shape[1])
    member = jax.nn.one_hot(group, G, dtype=wide(k).dtype)
    size = jnp.swapaxes(member.sum(1), 1, 2)  # (B,G,K)
    mean = lambda x: divide(_sums(member, x), size[..., None])
    none = jnp.finfo(size.dtype).min / 8
    log_size = jnp.where(size > 0, jnp.log(jnp.maximum(size, 1.0)), none)
    weigh = mods.mod(jnp.add, key=log_size)
    return attend(wide(q), mean(k), mean(v), mods=(weigh,), impl=impl).astype(q.dtype)


@on_any_mesh
def key_groups(k: K, *, groups: Groups = 64, rounds: int = 3) -> Int[Array, "B S K"]:
    """The group of each key, 0 .. G-1, for each head, by k-means of so many rounds."""
    if rounds < 1:
        raise ValueError(f"rounds: {rounds}; expected at least 1")
    S, G = k.shape[1], _count(groups, k.shape[1])
    k = lax.stop_gradient(finite(k))
    centers = k[:, np.arange(G) * S // G if isinstance(groups, int) else groups]
    group = _nearest(k, centers)
    for _ in range(rounds - 1):
        member = jax.nn.one_hot(group, G, dtype=k.dtype)
        size = jnp.swapaxes(member.sum(1), 1, 2)[..., None]
        centers = divide(_sums(member, k), size)  # an empty one stands at 0 from now on
        group = _nearest(k, centers)
    return group


def _count(groups: Groups, S: int) -> int:
    """G."""
    if isinstance(groups, int) and groups < 1:
        raise ValueError(f"groups: {groups}; expected at least 1")
    return min(groups, S) if isinstance(groups, int) else len(groups)


def _nearest(k: K, centers: Float[Array, "B G K H"]) -> Int[Array, "B S K"]:
    """The number of the center at the least distance; |k|^2 is that of all of them."""
    closeness = einsum("BSKH,BGKH->BSKG", k, centers)
    closeness -= jnp.moveaxis(jnp.square(centers).sum(-1), 1, 2)[:, None] / 2
    return jnp.argmax(closeness, axis=-1)


def _sums(member: Float[Array, "B S K G"], x: K) -> Float[Array, "B G K H"]:
    """The sum of x over each group."""
    return einsum("BSKG,BSKH->BGKH", member, x)


OPS = (
    Op(
        group_attention,
        papers=(161,),
        reads="all",
        draw={"groups": 3, "rounds": 2},
        limits=(
            Limit(
                "a group for each key is softmax attention",
                {"groups": by_sizes(lambda z: z["S"])},
                multi_head_attention,
            ),
        ),
    ),
)
