"""Consistency of two rates: the oracle, the teacher, who is sure."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.sparse_select import fusion_consistency_loss
from tests.helpers import draws, near


def fusion_consistency_loss_oracle(student, teacher, sure, least=0.0):
    each = [
        ((s - t) ** 2).mean()
        for s, t in zip(student[sure > least], teacher[sure > least], strict=True)
    ]
    return np.mean(each) if each else 0.0


def test_only_the_student_of_a_sure_example_learns():
    student, teacher = draws((3, 5), (3, 5))
    sure = jnp.asarray([0.2, 0.6, 0.9])
    loss = lambda s, t: fusion_consistency_loss(s, t, sure, least=0.5)
    of_student, of_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert not of_teacher.any() and not of_student[0].any()
    near(of_student[1:], (student - teacher)[1:] / 5)
    near(loss(teacher, teacher), 0.0)
