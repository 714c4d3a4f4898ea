"""Geometric algebra attention: oracles by the algebra's table; turns, order, tuples of three."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.graph_geometric import geometric_attention, geometric_pool, geometric_vectors
from tests.helpers import exact, near, run
from tests.laws.cases import BY_NAME
from tests.ops.plain import softmax

# Products of basis blades as tuples of vectors: signs by sorting, equal ones square to 1.


def times(a, b):
    """Two multivectors, dicts from sorted tuples of vectors to numbers."""
    out = {}
    for left, x in a.items():
        for right, y in b.items():
            sign, blade = 1.0, list(left)
            for e in right:
                place = len(blade)
                while place and blade[place - 1] > e:
                    place, sign = place - 1, -sign
                if place and blade[place - 1] == e:
                    del blade[place - 1]
                else:
                    blade.insert(place, e)
            out[tuple(blade)] = out.get(tuple(blade), 0.0) + sign * x * y
    return out


def multivector(r):
    return {(n,): x for n, x in enumerate(r)}


def parts(p, rank):
    """(invariants, vector) of a product of so many vectors."""
    of = lambda *blades: np.array([p.get(b, 0.0) for b in blades])
    norm = lambda x: np.sqrt((x**2).sum())
    if rank % 2:
        vector = of((0,), (1,), (2,))
        return [norm(vector)] + ([p.get((0, 1, 2), 0.0)] if rank > 1 else []), vector
    dual = of((1, 2), (0, 2), (0, 1)) * [1, -1, 1]
    return [p.get((), 0.0), norm(dual)], dual


def of_tuple(vectors):
    """All invariants and vectors of a tuple, in the order of products."""
    numbers, moved = [], []
    for start in range(len(vectors)):
        p, found = multivector(vectors[start]), []
        found.append(parts(p, 1))
        for n, r in enumerate(vectors[start + 1 :]):
            p = times(p, multivector(r))
            found.append(parts(p, n + 2))
        for invariants, vector in reversed(found):
            numbers += invariants
            moved.append(vector)
    return np.array(numbers), moved


def net(x, weights):
    (w1, b1), (w2, b2) = weights
    return np.maximum(x @ w1 + b1, 0) @ w2 + b2


def every(x, points, nets, b, i=None):
    """(u, score, vectors) of the tuples whose first point is i, or of all."""
    rank, T = len(nets.merge), x.shape[1]
    found = []
    for members in np.ndindex(*(T,) * rank):
        if i is not None and members[0] != i:
            continue
        numbers, moved = of_tuple([points[b, m] for m in members])
        values = net(numbers[: len(nets.value[0][0])], nets.value)
        merged = sum(x[b, m] @ w for m, w in zip(members, nets.merge, strict=True))
        u = values @ nets.join[0] + merged @ nets.join[1]
        found.append((u, net(u, nets.score)[0], moved))
    return found


def geometric_attention_oracle(x, points, nets):
    out = np.zeros_like(x)
    for b, i in np.ndindex(*x.shape[:2]):
        found = every(x, points, nets, b, i)
        out[b, i] = softmax(np.array([s for _, s, _ in found])) @ np.array([u for u, _, _ in found])
    return out


def geometric_pool_oracle(x, points, nets):
    out = []
    for b in range(len(x)):
        found = every(x, points, nets, b)
        out.append(softmax(np.array([s for _, s, _ in found])) @ np.array([u for u, _, _ in found]))
    return np.array(out)


def geometric_vectors_oracle(x, points, nets, scale, kernels):
    out = np.zeros_like(points)
    for b, i in np.ndindex(*x.shape[:2]):
        found = every(x, points, nets, b, i)
        w = softmax(np.array([s for _, s, _ in found]))
        for a, (u, _, moved) in zip(w, found, strict=True):
            pairs = zip(kernels, moved[: len(kernels)], strict=True)
            out[b, i] += a * net(u, scale)[0] * sum(c * r for c, r in pairs)
    return out


def rotation(seed=0):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return jnp.asarray(turn * np.sign(np.linalg.det(turn)), jnp.float32)


def test_turns_leave_values_and_turn_vectors():
    args, turn = BY_NAME["geometric_vectors"].sample(seed=2), rotation()
    x, points, nets = args["x"], args["points"], args["nets"]
    near(
        run(geometric_attention, x, points @ turn, nets), run(geometric_attention, x, points, nets)
    )
    moved = run(geometric_vectors, **args | {"points": points @ turn})
    near(moved, run(geometric_vectors, **args) @ turn)


def test_points_in_another_order():
    args = BY_NAME["geometric_vectors"].sample(seed=3)
    order = np.random.default_rng(1).permutation(args["x"].shape[1])
    mixed = args | {n: args[n][:, order] for n in ("x", "points")}
    near(run(geometric_vectors, **mixed), run(geometric_vectors, **args)[:, order])
    pool = lambda args: run(geometric_pool, args["x"], args["points"], args["nets"])
    near(pool(mixed), pool(args))


@pytest.mark.parametrize(("rank", "invariants", "kernels"), [(2, 2, 1), (3, 5, 3), (3, 9, 6)])
def test_tuples_of_three_and_fewer_invariants(rank, invariants, kernels):
    args = BY_NAME["geometric_vectors"].sample(2, B=1, T=4, K=rank, F=invariants, V=kernels)
    near(run(geometric_vectors, **args), geometric_vectors_oracle(**exact(args)), 1e-4)
    few = {n: args[n] for n in ("x", "points", "nets")}
    near(run(geometric_attention, **few), geometric_attention_oracle(**exact(few)), 1e-4)


def test_a_point_at_the_origin_has_finite_gradients():
    args = BY_NAME["geometric_vectors"].sample(seed=4)
    points = args["points"].at[:, 0].set(0.0)
    loss = lambda points: jnp.sum(geometric_vectors(**args | {"points": points}) ** 2)
    assert np.isfinite(jax.jit(jax.grad(loss))(points)).all()
