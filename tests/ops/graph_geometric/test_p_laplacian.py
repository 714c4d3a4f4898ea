"""p-Laplacian: its oracles; equal nodes stay finite, far ones weigh less, other order of nodes."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import p_laplacian
from tests.helpers import near, run
from tests.laws.cases import BY_NAME

OP = BY_NAME["p_laplacian"]


def heavy(x, y, weights, p):
    """M, (B,N,T,S)."""
    (B, N, T, S), out = weights.shape, np.zeros(weights.shape)
    for b, n, i, j in np.ndindex(B, N, T, S):
        a = weights[b, n, i, j]
        slope = np.sqrt(a + 1e-8) * (y[b, j, n] - x[b, i, n]) + 1e-8
        out[b, n, i, j] = a * np.sqrt((slope**2).sum()) ** (p - 2)
    return out


def p_laplacian_oracle(x, weights, p=1.25, mu=0.2):
    M, own = heavy(x, x, weights, p), 2 * mu / p
    sums = np.einsum("bnij,bjnd->bind", M, x) + own * x
    return sums / (M.sum(-1).transpose(0, 2, 1)[..., None] + own)


def p_laplacian_cross_oracle(x, y, weights, p=1.25, mu=0.2):
    M = heavy(x, y, weights, p)
    total = M.sum(-1).transpose(0, 2, 1)[..., None] + 2 * mu / p
    return np.einsum("bnij,bjnd->bind", M, y) / total


def test_equal_nodes_stay_as_they_are_with_finite_gradients():
    args = OP.sample(seed=2)
    x = jnp.broadcast_to(args["x"][:, :1], args["x"].shape)
    both = jax.jit(jax.value_and_grad(lambda x: jnp.sum(p_laplacian(x, args["weights"], p=1.25))))
    near(run(p_laplacian, x, args["weights"], p=1.25), x, 1e-4)
    assert np.isfinite(both(x)[1]).all()


def test_a_node_counts_itself_heavily_where_its_map_does():
    """The released code keeps the pair of a node with itself, whose difference is e alone."""
    args = OP.sample(seed=3)
    weights = args["weights"] + jnp.eye(9)[None, None]
    x, exact = np.asarray(args["x"], float), np.asarray(weights, float)
    near(run(p_laplacian, args["x"], weights, p=1.5), p_laplacian_oracle(x, exact, p=1.5), 1e-4)


def test_nodes_in_another_order():
    args = OP.sample(seed=4)
    order = np.random.default_rng(1).permutation(9)
    weights = args["weights"][:, :, order][:, :, :, order]
    near(
        run(p_laplacian, args["x"][:, order], weights),
        run(p_laplacian, args["x"], args["weights"])[:, order],
        1e-4,
    )
