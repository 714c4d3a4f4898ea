"""Relative molecule attention: its oracle; atoms in another order, the basis of distances."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.ops.graph_geometric import bessel_basis, relative_molecule_attention
from tests.helpers import near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import heads, softmax, visible

OP = BY_NAME["relative_molecule_attention"]


def relative_molecule_attention_oracle(q, k, v, p, pair_keys, pair_values, u, w, allowed=None):
    (B, T, N, H), (S, _, D) = q.shape, v.shape[1:]
    k, v, out = heads(k, N), heads(v, N), np.zeros((B, T, N, D))
    for b, i, n in np.ndindex(B, T, N):
        if js := visible(allowed, b, n, i, S):
            scores = [
                (q[b, i, n] @ k[b, j, n] + p[b, i, n] @ pair_keys[b, i, j, n]) / np.sqrt(H)
                + u[n] @ k[b, j, n]
                + w[n] @ pair_keys[b, i, j, n]
                for j in js
            ]
            weights = softmax(np.array(scores))
            rows = v[b, js, n] + pair_values[b, i, js, n]
            out[b, i, n] = weights @ rows
    return out


def test_atoms_in_another_order():
    args = OP.sample(seed=2)
    order = np.random.default_rng(1).permutation(args["q"].shape[1])
    mixed = {n: args[n][:, order] for n in ("q", "k", "v", "p")}
    pairs = {n: args[n][:, order][:, :, order] for n in ("pair_keys", "pair_values")}
    near(run(OP.fn, **args | mixed | pairs), run(relative_molecule_attention, **args)[:, order])


def test_the_basis_of_distances_is_smooth_and_ends_at_the_cutoff():
    points = np.random.default_rng(0).normal(size=(7, 3)) * 4
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    apart = lambda x: jnp.asarray(np.linalg.norm(x[:, None] - x[None], axis=-1))
    basis = jax.jit(lambda d: bessel_basis(d, 4, 6.0))
    near(basis(apart(points)), basis(apart(points @ turn + 3)), 1e-4)
    far, edge = basis(jnp.array([[6.1, 9.0]])), basis(jnp.array([[5.99, 5.999]]))
    assert not far.any() and abs(edge).max() < 1e-5
    x = 2.5 / 6
    envelope = 1 / x - 28 * x**5 + 48 * x**6 - 21 * x**7
    want = envelope * np.sin(np.pi * np.arange(1, 5) * x)
    near(basis(jnp.array([[2.5]]))[0, 0], want, 1e-4)
