"""CoulGAT: its oracle; nodes are renamed only together with what they have learned."""

import numpy as np

from attnjax.ops.graph_geometric import coulomb_attention
from tests.helpers import near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import softmax

OP = BY_NAME["coulomb_attention"]


def coulomb_attention_oracle(x, potential, power, w, b, a):
    (B, T, _), (N, _, D) = x.shape, w.shape
    out = np.zeros((B, T, N, D))
    for e, n in np.ndindex(B, N):
        g = x[e] @ w[n] + b[n]
        S = np.array([softmax(row) for row in potential[e] ** power[n]])
        for i in range(T):
            scores = np.array([a[n, i] @ (S[j] @ g) for j in range(T)])
            out[e, i, n] = softmax(np.where(scores > 0, scores, 0.2 * scores)) @ g
    return out


def test_nodes_are_renamed_with_their_parameters_and_not_without():
    args = OP.sample(seed=2)
    o = np.random.default_rng(1).permutation(9)
    nodes = {"x": args["x"][:, o], "potential": args["potential"][:, o][:, :, o]}
    learned = {n: args[n][:, o] for n in "ab"} | {"power": args["power"][:, o][:, :, o]}
    want = run(coulomb_attention, **args)[:, o]
    near(run(coulomb_attention, **args | nodes | learned), want)
    assert abs(run(coulomb_attention, **args | nodes) - want).max() > 0.1
