"""Multi-token attention: weights that depend on several queries and keys, and on several heads.

    L_nij = sum_a sum_b kernel[n, A-1-a, b] S_n,i-a,j+b-c,    S = q.k / sqrt(H), 0 where forbidden
    A_n = softmax(sum_m mix_scores[m,n] L_m) over the allowed keys
    A'_n = convolution of A_n by kernel_after, in the same way, zero where forbidden
    out_in = sum_j (sum_m mix[m,n] A'_m)_ij v_jn

with A queries, the last of them query i itself, and an odd number 2c+1 of keys around key j.

    multi_token_attention        the first convolution alone, then softmax
    multi_token_attention_full   all four, as in the released model

Paper: Golovneva et al., "Multi-Token Attention", 2025, arXiv:2504.00927.
Limits: kernels that pick the pair itself, and heads that are not mixed: softmax attention.
Differs: the norm of each head's result and its gate belong to a layer. Heads mix in all: blocks of
a few heads are a mix with zeros between them.
"""

import itertools

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods, normalizers
from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import Impl, attend, attention_scores, attention_weights
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, Sizes, by_sizes, normal
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.typing import Array, Float, K, Out, Q, V, Weights


@of_whole_text
@on_any_mesh
def multi_token_attention(
    q: Q,
    k: K,
    v: V,
    kernel: Float[Array, "N A C"],
    *,
    mask: masks.Mask = masks.causal,
    impl: Impl = None,
) -> Out:
    """Softmax of the convolved scores; dense, O(T S) memory, under every `impl`."""
    convolved = mods.mod(_instead, pair=_convolved_scores(q, k, kernel, mask))
    return attend(q, k, v, mods=(convolved,), mask=mask, impl=impl)


@on_any_mesh
def multi_token_attention_full(
    q: Q,
    k: K,
    v: V,
    kernel: Float[Array, "N A C"],
    mix_scores: Float[Array, "N N"],
    kernel_after: Float[Array, "N A C"],
    mix: Float[Array, "N N"],
    *,
    mask: masks.Mask = masks.causal,
) -> Out:
    """Both convolutions and both mixtures of heads; weights then need not sum to one."""
    mixed = einsum("BMTS,MN->BNTS", _convolved_scores(q, k, kernel, mask), mix_scores)
    w = attention_weights(wide(q), wide(k), mods=(mods.mod(_instead, pair=mixed),), mask=mask)
    w = einsum("BMTS,MN->BNTS", _convolved(w, kernel_after), mix)
    given = mods.mod(_instead, pair=w)
    return attend(q, k, v, mods=(given,), mask=mask, normalizer=normalizers.identity)


def _convolved_scores(q: Q, k: K, kernel: Float[Array, "N A C"], mask: masks.Mask) -> Weights:
    scores = attention_scores(wide(q), wide(k), mask=mask)
    return _convolved(jnp.where(scores == -jnp.inf, 0.0, scores), kernel)


def _convolved(x: Weights, kernel: Float[Array, "N A C"]) -> Weights:
    """Each head by itself; queries from A - 1 before to the query, keys on both sides alike."""
    N, A, C = kernel.shape
    if N != x.shape[1] or C % 2 == 0:
        raise ValueError(
            f"multi_token_attention: kernel has shape {kernel.shape}, expected (N,A,C) with N = "
            f"{x.shape[1]} heads and an odd number C of keys"
        )
    # Not lax.conv_general_dilated: where XLA partitions it over devices, the gradient of its kernel
    # is too large (jaxlib 0.10.2).
    (T, S), w = x.shape[2:], wide(kernel)
    padded = jnp.pad(x, ((0, 0), (0, 0), (A - 1, 0), (C // 2, C // 2)))
    out = jnp.zeros_like(x)
    for a, c in itertools.product(range(A), range(C)):
        out = out + w[None, :, a, c, None, None] * padded[:, :, a : a + T, c : c + S]
    return out


def _instead(score: Array, given: Array) -> Array:
    return given


def _pair_itself(z: Sizes) -> np.ndarray:
    kernel = np.zeros((z["N"], z["A"], z["C"]))
    kernel[:, -1, z["C"] // 2] = 1.0
    return kernel


_ITSELF = by_sizes(_pair_itself)
_APART = by_sizes(lambda z: np.eye(z["N"]))
_SIZES = {"A": 3, "C": 5}

OPS = (
    Op(
        multi_token_attention,
        papers=(136,),
        draw={"kernel": normal(0.5)},
        sizes=_SIZES,
        limits=(
            Limit("the pair itself: softmax attention", {"kernel": _ITSELF}, causal_attention),
        ),
    ),
    Op(
        multi_token_attention_full,
        papers=(136,),
        draw={
            "kernel": normal(0.5),
            "mix_scores": normal(0.5),
            "kernel_after": normal(0.5),
            "mix": normal(0.5),
        },
        sizes=_SIZES,
        limits=(
            Limit(
                "the pair itself, heads apart: softmax attention",
                {
                    "kernel": _ITSELF,
                    "mix_scores": _APART,
                    "kernel_after": _ITSELF,
                    "mix": _APART,
                },
                causal_attention,
            ),
        ),
    ),
)
