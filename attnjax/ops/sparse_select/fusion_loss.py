"""The consistency of two rates of token fusion: few tokens shall tell what more tokens tell.

    loss = mean over the examples that are sure of  mean_w (student_w - teacher_w)^2

student and teacher are the class token, normed, after all layers at the rate of reduction that is
trained for and at a lower one, drawn at random for each batch.  An example is sure where the
student gives the right class, or the two of a mixture together, a probability above `least`.

Paper: Lee et al., "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision
Transformers", 2024, arXiv:2403.10030; code: mlvlab/MCTF, `models/deit.py`, `engine.py`.
Limits: nobody sure is a loss of zero; student = teacher, too.
Differs: nothing.  The teacher has no gradient; its rate is drawn from 0, 0.01, ... below the most.
"""

import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import divide, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, uniform
from attnjax.typing import Array, Float

ClassToken = Float[Array, "B W"]


@on_any_mesh
def fusion_consistency_loss(
    student: ClassToken, teacher: ClassToken, sure: Float[Array, " B"], *, least: float = 0.0
) -> Float[Array, ""]:
    """Mean square distance of the class tokens; `sure` is the probability of the right class."""
    apart = wide(student) - lax.stop_gradient(wide(teacher))
    each = jnp.mean(jnp.square(apart), axis=-1)
    counts = (sure > least).astype(each.dtype)
    return divide(jnp.sum(each * counts), jnp.sum(counts))


def _nothing() -> Float[Array, ""]:
    return jnp.zeros(())


OPS = (
    Op(
        fusion_consistency_loss,
        papers=(15,),
        draw={"sure": uniform(0.0, 1.0), "least": 0.3},
        sizes={"B": 6},
        limits=(Limit("nobody is sure", {"least": 2.0}, _nothing),),
        exempt={
            "gradients": "the teacher is held fixed: it has no gradient",
            "jvp": "the teacher is held fixed: it has no gradient",
        },
    ),
)
