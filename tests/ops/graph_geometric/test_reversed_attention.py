"""Reversed attention: its oracle; what children give away, leaves, transposed maps, the tree."""

import jax.numpy as jnp
import numpy as np

from attnjax import attend
from attnjax.ops.graph_geometric import dependencies, received, reversed_attention
from tests.helpers import draws, near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import heads, softmax

OP = BY_NAME["reversed_attention"]


def reversed_attention_oracle(q, k, v, selector, message, temperature=0.1):
    (B, T, N, H), D = q.shape, v.shape[-1]
    k, v, out = heads(k, N), heads(v, N), np.zeros((B, T, N, D))
    for b, i in np.ndindex(B, T):
        chosen = softmax(selector[b, i] / temperature)
        for n in range(N):
            to = softmax(k[b, :, n] @ q[b, i, n] / np.sqrt(H))
            out[b, :, n] += chosen[n] * message[b, i] * np.outer(to, v[b, i, n])
    return out


def test_a_child_gives_its_message_once_and_a_leaf_nothing():
    args = OP.sample(seed=2)
    few = [args[n] for n in ("q", "k", "selector", "message")]
    tree = run(dependencies, *few)
    near(tree.sum(-1), args["message"])
    near(received(tree).sum(-1), args["message"].sum(-1))
    silent = args | {"message": args["message"].at[:, 3].set(0.0)}
    other = silent | {"v": args["v"].at[:, 3].multiply(5.0)}
    near(run(OP.fn, **silent), run(OP.fn, **other))


def test_one_head_of_full_messages_is_the_transposed_map():
    q, k, v = draws((2, 7, 1, 4), (2, 7, 1, 4), (2, 7, 1, 5))
    weights = attend(q, k, jnp.broadcast_to(jnp.eye(7)[None, :, None], (2, 7, 1, 7)))[:, :, 0]
    out = run(reversed_attention, q, k, v, jnp.zeros((2, 7, 1)), jnp.ones((2, 7)))
    near(out[:, :, 0], jnp.einsum("Bij,BiD->BjD", weights, v[:, :, 0]))


def test_tokens_in_another_order():
    args = OP.sample(seed=3)
    order = np.random.default_rng(1).permutation(9)
    mixed = {n: x if n == "temperature" else x[:, order] for n, x in args.items()}
    near(run(OP.fn, **mixed), run(OP.fn, **args)[:, order])
