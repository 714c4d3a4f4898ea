"""CogVLA: actions that see each other, and image tokens whose MLP an instruction turns down.

    vla_coupled_attention   query i sees key j <= i, and all actions see all actions, the last ones
    routed_layer            out_i = h_i + r_i mlp(h)_i,  h = x_kept + attention(x_kept), of the kept
                            out_i = x_i of the others
    r = softmax(W x')_1,    x' = (1 + gamma) x + beta of image tokens, x of the others,
                            gamma, beta MLPs of the mean of the instruction's states
    kept: the k image tokens of largest r, and all others, with positions 0, 1, ..

Paper: Li et al., "CogVLA: Cognition-Aligned Vision-Language-Action Model via Instruction-Driven
Routing & Sparsification", 2025, arXiv:2508.21046; code: JiuTian-VL/CogVLA, `modeling_llama.py`.
Limits: one action is causal attention; all tokens kept with r = 1 are the dense layer.
Differs: the code weighs what the MLP adds to every kept token, of text too, and so does this.  Its
actions end in a token that stops, which is one of them here.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from attnjax.core import masks
from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, by_sizes, fill
from attnjax.ops.softmax_core.multi_head import causal_attention
from attnjax.ops.sparse_select.route import Layer, Score, Tokens, mixing, route, sample_frames
from attnjax.typing import Out, Q, TokenK, TokenV


@of_whole_text
@on_any_mesh
def vla_coupled_attention(q: Q, k: TokenK, v: TokenV, *, actions: int, impl: Impl = None) -> Out:
    """Causal attention, but both ways among the last `actions` tokens: a chunk in one pass."""
    T = q.shape[1]
    if not 0 <= actions <= T:
        raise ValueError(f"actions: {actions}; expected 0 to T = {T}")
    own = np.minimum(np.arange(T), T - max(actions, 1))
    return attend(q, k, v, mask=masks.causal | masks.document(own), impl=impl)


@on_any_mesh
def routed_layer(
    x: Tokens,
    score: Score,
    attention: Layer,
    mlp: Layer,
    *,
    k: int,
    frames: Sequence[int] | None = None,
) -> Tokens:
    """A layer of the kept tokens, whose MLP counts as much as their scores say.

    attention(tokens (B,M,W), positions (B,M)) and mlp are without residuals, norms included; image
    tokens have frame 0, all others -1: see `route`.
    """
    kept = route(x, score, k=k, frames=frames)
    read = attention(kept.tokens, kept.index)
    added = mlp(kept.tokens + read, kept.index)
    return kept.added(x, read + kept.of(wide(score))[..., None] * added)


def kept_shares(depth: int, *, least: float = 0.15, most: float = 0.85) -> list[float]:
    """The share of image tokens that each layer keeps: a cosine from 1 to 0, bounded below.

    Layers whose share is above `most` are dense: 1.
    """
    if depth < 2:
        raise ValueError(f"depth: {depth}; expected at least 2 layers")
    shares = [math.cos(math.pi * layer / (depth - 1)) / 2 + 0.5 for layer in range(depth)]
    return [1.0 if share > most else max(share, least) for share in shares]


def _dense(x: Tokens) -> Tokens:
    at = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    h = x + mixing(x, at)
    return h + mixing(h, at)


OPS = (
    Op(
        vla_coupled_attention,
        papers=(367,),
        reads="all",
        draw={"actions": by_sizes(lambda z: -(-2 * z["T"] // 3))},
        limits=(
            Limit("one action is causal attention", {"actions": 1}, causal_attention),
            Limit("no action, too", {"actions": 0}, causal_attention),
        ),
    ),
    Op(
        routed_layer,
        papers=(367,),
        reads="all",
        draw={"attention": mixing, "mlp": mixing, "k": 2, "frames": by_sizes(sample_frames)},
        limits=(Limit("all tokens, of weight one", {"k": 99, "score": fill(1.0)}, _dense),),
    ),
)
