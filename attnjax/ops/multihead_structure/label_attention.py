"""Label attention: a head for each label reads one vector from a sentence and tells it every word.

    a_l = softmax_t(q_l . x_t W_K,l / sqrt(W)),    c_l = sum_t a_lt x_t W_V,l
    out_tl = norm((x_t + c_l W_O) W_R),    q_l learned, W_O and W_R shared by the labels
    norm(z) = (z - mean) / (deviation + 1e-3) scale + shift,    the deviation of a sample, by R - 1

out is (B,T,L R), the labels side by side: slice l tells what label l makes of each word.

Paper: Mrini et al., "Rethinking Self-Attention: Towards Interpretability in Neural Parsing", 2019,
arXiv:1911.03875, section 3; code: KhalilMrini/LAL-Parser, `LabelAttention`.
Limits: q = 0 reads the mean.
Differs: the paper divides scores by the root of a head's width, the code, followed here, by that of
the model's. The code splits every map between halves of content and position: block-diagonal ones
here. Its sentences are mixed up where there are several in a batch.
"""

from typing import NamedTuple

import jax.numpy as jnp

from attnjax.core import masks
from attnjax.core.numerics import aligned, einsum, matmul, wide
from attnjax.core.pairwise.attend import Impl
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.softmax_core.pool import attention_pool
from attnjax.typing import Array, Bool, Float


class LabelHeads(NamedTuple):
    """Weights of L labels, of width H to score, D to read and R to tell."""

    q: Float[Array, "L H"]
    k: Float[Array, "W L H"]
    v: Float[Array, "W L D"]
    out: Float[Array, "D W"]
    reduce: Float[Array, "W R"]
    scale: Float[Array, " R"]
    shift: Float[Array, " R"]


@of_whole_text
@on_any_mesh
def label_attention(
    x: Float[Array, "B T W"],
    weights: LabelHeads,
    *,
    visible: Bool[Array, "B T"] | None = None,
    impl: Impl = None,
) -> Float[Array, "B T LR"]:
    """What L labels, each with one distribution over the words, tell every word, (B,T,L*R).

    `visible` tells words from padding. Memory O(T L R), not O(T L W).
    """
    w, W = weights, x.shape[-1]
    if visible is None:
        visible = jnp.ones(x.shape[:2], bool)
    words = jnp.where(visible[..., None], wide(x), 0.0)
    k, v = einsum("BTW,WLH->BTLH", words, w.k), einsum("BTW,WLD->BTLD", words, w.v)
    mask = masks.array(visible[:, None, None])
    read = attention_pool(wide(w.q)[None] / W**0.5, k, v, mask=mask, impl=impl)  # (B,1,L,D)
    told = matmul(matmul(read, w.out), w.reduce)
    z = matmul(x, w.reduce)[:, :, None] + told  # (B,T,L,R)
    z = _norm(z) * aligned(w.scale, z) + aligned(w.shift, z)
    return z.reshape(*x.shape[:2], z.shape[2] * z.shape[3]).astype(x.dtype)


def _norm(z: Array) -> Array:
    if z.shape[-1] == 1:
        return z
    centered = z - z.mean(-1, keepdims=True)
    square = jnp.square(centered).sum(-1, keepdims=True) / (z.shape[-1] - 1)
    return centered / (jnp.sqrt(square) + 1e-3)


def _mean(x: Array, weights: LabelHeads) -> Array:
    w = weights
    read = jnp.einsum("BW,WLD->BLD", x.mean(1), w.v)
    z = (x[:, :, None] + (read @ w.out)[:, None]) @ w.reduce
    return (_norm(z) * w.scale + w.shift).reshape(*x.shape[:2], -1)


OPS = (
    Op(
        label_attention,
        papers=(98,),
        reads="all",
        sizes={"L": 4, "R": 5, "LR": 20, "H": 4, "D": 6},
        limits=(
            Limit(
                "q = 0 reads the mean",
                {"weights": adjusted(lambda w: w._replace(q=0 * w.q))},
                _mean,
            ),
        ),
    ),
)
