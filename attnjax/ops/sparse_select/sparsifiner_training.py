"""What Sparsifiner's predictor learns from, the tokens that its class token lets go, its phases.

    reconstruction loss = sum over queries behind the first of (C U^T - A)^2, see `predicted_map`
    A are the weights of softmax attention: those of a teacher, or the own ones before any choice
    most looked at      the `keep` tokens of largest mean over heads of A_0j, and the class token 0

Training has phases, see `RELEASED`: reconstruction of the teacher's maps without any choice, then
the divergence KL(teacher, student) of the logits, then the own maps and the logits in turn.

Paper: Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision
Transformers", 2023, arXiv:2303.13755; code: lim142857/Sparsifiner, `losses.py`, `sparsifiner.py`,
`default_config.py`.
Limits: keep of all tokens keeps them; a map that is A has no loss.
Differs: nothing in the loss.  The code leaves tokens that were let go in their places as zeros, and
the class token still looks at those; here they are gathered away, rows of D and U with them.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import wide
from attnjax.core.pairwise.attend import attention_weights
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, by_sizes
from attnjax.ops.sparse_select.sparsifiner import Predictor, predicted_map
from attnjax.typing import Array, Float, Int, K, Q, Weights

Phases = Sequence[tuple[str, int]]

RELEASED: Phases = (
    ("reconstruction", 8),
    ("distillation", 12),
    ("own reconstruction", 8),
    ("distillation", 22),
)
"""(loss, epochs) in their order."""


@on_any_mesh
def reconstruction_loss(
    q: Q, k: K, predictor: Predictor, teacher: Weights, *, full: int = 1
) -> Float[Array, ""]:
    """Square distance of the predicted map to `teacher`, in sum; the first `full` queries see all.

    For the own maps pass `attention_weights(q, k)`.  A model takes the mean over its layers.
    """
    predicted = predicted_map(q[:, full:], k, predictor)
    wanted = jnp.moveaxis(wide(teacher), 1, 2)[:, full:]
    return jnp.sum(jnp.square(predicted - wanted))


@on_any_mesh
def most_looked_at(queries: Q, keys: K, *, keep: int) -> Int[Array, "B M"]:
    """The tokens that stay, in order: the class token, the first, and `keep` others; M = keep + 1.

    Of tokens that others have left before, pass those that are there.  No gradient.
    """
    S = keys.shape[1]
    if not 0 <= keep < S:
        raise ValueError(f"keep: {keep}; expected 0 to S - 1 = {S - 1}")
    seen = attention_weights(wide(queries[:, :1]), wide(keys))[:, :, 0].mean(1)
    _, chosen = lax.top_k(lax.stop_gradient(seen[:, 1:]), keep)
    first = jnp.zeros((len(keys), 1), chosen.dtype)
    return jnp.concatenate([first, jnp.sort(chosen, axis=-1) + 1], axis=1)


def phase_at(epoch: int, phases: Phases = RELEASED) -> str:
    """The loss of an epoch, 0, 1, ...; ValueError beyond the last."""
    for name, epochs in phases:
        if 0 <= epoch < epochs:
            return name
        epoch -= epochs
    raise ValueError(f"epoch: {epoch} beyond the last phase; expected one of {phases}")


def _all(keys: K) -> Int[Array, "B S"]:
    return jnp.broadcast_to(jnp.arange(keys.shape[1]), keys.shape[:2])


def _sum_of_squares(teacher: Weights) -> Float[Array, ""]:
    return jnp.sum(jnp.square(teacher[:, :, 1:]))


def _blank(slot: Slot) -> Predictor:
    predictor = slot.tree()
    return predictor._replace(up=0 * predictor.up)


OPS = (
    Op(
        reconstruction_loss,
        papers=(41,),
        sizes={"C": 4},
        limits=(Limit("no basis", {"predictor": Draw(_blank)}, _sum_of_squares),),
    ),
    Op(
        most_looked_at,
        papers=(41,),
        draw={"keep": 4},
        limits=(Limit("all stay", {"keep": by_sizes(lambda z: z["S"] - 1)}, _all),),
    ),
)
