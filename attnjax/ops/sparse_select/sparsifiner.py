"""Sparsifiner: a map of low rank, predicted from q and k, says which keys a query attends to.

    q' = q W_q + b_q,  k' = D^T (k W_k + b_k),    narrower vectors, R mixtures of the keys
    C_ir = softmax_r(q'_i . k'_r / sqrt(N)),      M = C |U|^T
    out_i = softmax_j(q_i . k_j / sqrt(H)) V over the share `keep` of keys of largest M_ij;
            the first tokens, such as the class token, see all keys

Paper: Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision
Transformers", 2023, arXiv:2303.13755, section 3.
Limits: keep = 1 is softmax attention.
Differs: as in the released code the predictor's scale is 1 / sqrt(N), that of the number of heads.
The predictor learns from a loss of its own alone, `reconstruction_loss`. Tokens are pruned by
`most_looked_at`.
"""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.blocks import select
from attnjax.core.numerics import Affine, einsum, finite
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Float, K, Out, Q, V


class Predictor(NamedTuple):
    """W_q, W_k (H,C) with b_q, b_k for all heads, D and U (S,R); the paper has C = H/2, R = S/8."""

    q: Annotated[Affine, "H C"]
    k: Annotated[Affine, "H C"]
    down: Float[Array, "S R"]
    up: Float[Array, "S R"]


@of_whole_text
@on_any_mesh
def sparsifiner(
    q: Q,
    k: K,
    v: V,
    predictor: Predictor,
    *,
    keep: float = 0.25,
    full: int = 1,
    least: tuple[float, float] = (0.0, 0.0),
    impl: Impl = None,
) -> Out:
    """Attention to the ceil(keep S) keys that the predictor likes best, in both directions.

    The first `full` queries see all. Each head of each query chooses for itself; no gradient of the
    result reaches the predictor. The predicted map has T S entries for each head. Entries of C and
    of |U| that are not above `least`, one number for each, are zero.
    """
    T, S = q.shape[1], k.shape[1]
    if not 0 < keep <= 1:
        raise ValueError(f"keep: {keep}; expected a share in (0, 1]")
    if not 0 <= full:
        raise ValueError(f"full: {full}; expected at least 0")
    parts = [attend(q[:, :full], k, v, impl=impl)] if full else []
    if T > full:
        rest = q[:, full:]
        basis = _above(jnp.abs(predictor.up), least[1])
        liked = predicted_map(rest, k, predictor._replace(up=basis), least[0])
        chosen = select.top_k(liked, math.ceil(keep * S), block_k=1)
        parts.append(attend(rest, k, v, blocks=chosen, impl=impl))
    return jnp.concatenate(parts, axis=1)


@on_any_mesh
def predicted_map(q: Q, k: K, predictor: Predictor, least: float = 0.0) -> Float[Array, "B T N S"]:
    """C U^T, wide: what shall be the weights of softmax attention, of rank R; C above `least`."""
    S = k.shape[1]
    if len(predictor.down) != S or len(predictor.up) != S:
        told = f"down and up of {len(predictor.down)} and {len(predictor.up)} tokens"
        raise ValueError(f"predictor: {told}; expected S = {S}")
    few = einsum("SR,BSKC->BRKC", predictor.down, predictor.k(finite(k)))
    scores = select.dot_scores(predictor.q(finite(q)), few) * q.shape[2] ** -0.5
    shares = _above(jax.nn.softmax(scores, axis=-1), least)
    return einsum("BTNR,SR->BTNS", shares, predictor.up)


def _above(x: Array, least: float) -> Array:
    """x where it is above `least`, else zero."""
    return jnp.where(x > least, x, 0.0)


OPS = (
    Op(
        sparsifiner,
        papers=(41,),
        reads="all",
        draw={"keep": 0.3},
        sizes={"C": 4},
        limits=(Limit("keep = 1 is softmax attention", {"keep": 1.0}, multi_head_attention),),
    ),
)
