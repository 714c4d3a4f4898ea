"""Exits of image tokens: the oracle; what a router reads, labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.kv_decode import exit_logits, may_exit
from tests.helpers import draw, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import gelu


def exit_logits_oracle(hidden, router, text_from):
    rows = []
    for states in hidden:
        *text, last = states[text_from:]
        features = np.concatenate([sum(text) / len(text), last])
        rows.append(gelu(features @ router.up) @ router.down)
    return np.array(rows)


def test_a_router_reads_the_text_alone_and_sends_nothing_back():
    args = BY_NAME["exit_logits"].sample()
    hidden, router = args["hidden"], args["router"]
    logits = lambda hidden: exit_logits(hidden, router, text_from=3)
    near(logits(hidden.at[:, :3].set(9.0)), logits(hidden))
    assert np.abs(logits(hidden.at[:, 3].set(9.0)) - logits(hidden)).min() > 1e-4
    assert not jax.grad(lambda hidden: logits(hidden).sum())(hidden).any()
    with pytest.raises(ValueError, match="text_from: 8; expected two tokens of text at least"):
        exit_logits(hidden, router, text_from=8)


def test_labels():
    kept = draw(4, 6, 5)
    targets = kept.argmax(-1)
    answer = jnp.arange(6) >= jnp.asarray([[2], [2], [2], [5]])
    worse = kept.at[1].multiply(0.5)  # the same words, less sure
    other = worse.at[2, 4].multiply(-1.0)  # one word of the answer is another
    other = other.at[3, 0].multiply(-1.0)  # a word that is not of the answer
    assert may_exit(kept, other, targets, answer).tolist() == [True, False, False, True]
