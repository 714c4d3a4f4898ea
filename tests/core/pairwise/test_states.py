"""States of attention to parts of the keys, which join to that of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import (
    Blockwise,
    attend,
    attend_state,
    join_states,
    normalizers,
)
from attnjax.core.pairwise.cudnn import CuDNN
from tests.core.blocks.inputs import qkv
from tests.helpers import close, value_and_pull


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.softmax, normalizers.softmax_sink(np.arange(4.0)), normalizers.softpick(),
     normalizers.sigmoid(-2.0)],
    ids=lambda n: n.name,
)  # fmt: skip
def test_states_of_parts_join_to_the_whole(normalizer):
    """In value and gradient, through both forms of execution, in any order."""

    def joined(q, k, v):
        run = functools.partial(attend_state, q, normalizer=normalizer)
        a = run(k[:, :4], v[:, :4], impl="dense")
        b = run(k[:, 4:5], v[:, 4:5], impl=Blockwise(4, 3))
        c = run(k[:, 5:], v[:, 5:], impl=Blockwise(5, 2))
        return join_states(c, a, b, normalizer=normalizer)

    whole = lambda q, k, v: attend(q, k, v, normalizer=normalizer, impl="dense")
    with jax.enable_x64():
        args = [x.astype(jnp.float64) for x in qkv()]
        close(value_and_pull(joined)(*args), value_and_pull(whole)(*args))


def test_a_state_comes_from_an_implementation_that_has_one():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="impl is 'cudnn', expected None.*'dense', 'blockwise'"):
        attend_state(q, k, v, impl="cudnn")
    with pytest.raises(TypeError, match="expected one with a method state"):
        attend_state(q, k, v, impl=CuDNN("xla"))


def test_only_one_pass_normalizers_join():
    q, k, v = qkv()
    state = attend_state(q, k, v, normalizer=normalizers.entmax(1.5))
    with pytest.raises(ValueError, match="expected a one-pass normalizer"):
        join_states(state, state, normalizer=normalizers.entmax(1.5))
