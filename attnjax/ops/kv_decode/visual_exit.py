"""Dynamic visual-token exit: a router of each layer tells when the text needs the image no more.

    f      = [mean of the text tokens behind the image but the last; the last one], of a layer's
             output
    logits = gelu(f W_1) W_2, of keeping the image and of letting it exit

At the first layer with the larger second logit all image tokens leave the states, positions and
masks of the layers behind it, which then cache text alone; earlier layers keep theirs.  For
training a layer is drawn, the model goes on from it with and without image, and `may_exit` labels
its router, whose f has no gradient:

    more than 0.99 of the answer's tokens stay the likeliest, and its loss is below 1.03 times
    that with the image

Paper: Wu et al., "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and
the Empirical Findings", 2024, arXiv:2411.19628; code: DoubtedSteam/DyVTE.
Limits: text states of zeros give zeros, and the image stays.
Differs: which loss the label compares is the caller's choice of answer tokens, given as `answer`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import matmul, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.typing import Array, Bool, Float, Int


class ExitRouter(NamedTuple):
    """Learned, of one layer; E is 2048 in the released code."""

    up: Float[Array, "2W E"]
    down: Float[Array, "E 2"]


@on_any_mesh
def exit_logits(
    hidden: Float[Array, "B T W"], router: ExitRouter, *, text_from: int
) -> Float[Array, "B 2"]:
    """(keep, exit) of a layer's output; the text behind the image begins at token `text_from`."""
    T = hidden.shape[1]
    if not 0 <= text_from <= T - 2:
        raise ValueError(f"text_from: {text_from}; expected two tokens of text at least, T = {T}")
    text = wide(hidden[:, text_from:])
    features = jnp.concatenate([text[:, :-1].mean(1), text[:, -1]], axis=-1)
    inside = jax.nn.gelu(matmul(lax.stop_gradient(features), router.up), approximate=False)
    return matmul(inside, router.down).astype(hidden.dtype)


def may_exit(
    kept: Float[Array, "B T C"],
    without: Float[Array, "B T C"],
    targets: Int[Array, "B T"],
    answer: Bool[Array, "B T"],
) -> Bool[Array, " B"]:
    """Whether logits without the image are as good on the tokens of the answer."""
    count = answer.sum(1)
    same = (answer & (kept.argmax(-1) == without.argmax(-1))).sum(1)

    def loss(logits: Float[Array, "B T C"]) -> Float[Array, " B"]:
        log_p = jax.nn.log_softmax(wide(logits))
        own = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        return -jnp.where(answer, own, 0.0).sum(1) / count.astype(own.dtype)

    return (same > 0.99 * count) & (loss(without) < 1.03 * loss(kept))


def _undecided(hidden: Float[Array, "B T W"]) -> Float[Array, "B 2"]:
    return jnp.zeros((len(hidden), 2), hidden.dtype)


OPS = (
    Op(
        exit_logits,
        papers=(12,),
        draw={"text_from": 3},
        sizes={"2W": 16, "E": 6},
        limits=(Limit("text states of zeros", {"hidden": fill(0.0)}, _undecided),),
    ),
)
