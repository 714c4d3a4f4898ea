"""Attention on the sphere: the oracle, quadrature, what a turn of the sphere does, other grids."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.ops.local_structured import spherical_attention
from attnjax.ops.local_structured.sphere import equal_angles, gauss_legendre
from tests.helpers import draw, near, qkv, weights_of
from tests.ops.plain import blend, weights


def spherical_attention_oracle(q, k, v, sphere, queries=None, cutoff=None):
    """Distances by the haversine of two places."""
    places = lambda s: [
        (theta, 2 * math.pi * i / s.longitudes, w)
        for theta, w in zip(s.colatitudes, s.weights, strict=True)
        for i in range(s.longitudes)
    ]
    keys, at, (K, N) = places(sphere), places(queries or sphere), (k.shape[2], q.shape[2])

    def angle(a, b):
        hav = math.sin((a[0] - b[0]) / 2) ** 2
        hav += math.sin(a[0]) * math.sin(b[0]) * math.sin((a[1] - b[1]) / 2) ** 2
        return 2 * math.asin(min(math.sqrt(hav), 1.0))

    close = None
    if cutoff is not None:
        close = np.array([[angle(a, b) <= 1.001 * cutoff for b in keys] for a in at])
    area = lambda j: 2 * math.pi * keys[j][2] / sphere.longitudes
    score = lambda b, n, i, j: (
        q[b, i, n] @ k[b, j, n * K // N] / math.sqrt(q.shape[-1]) + math.log(area(j))
    )
    return blend(weights(q, k, close, logit=score), v)


@pytest.mark.parametrize("make", [equal_angles, gauss_legendre])
def test_areas_are_a_quadrature(make):
    """Of 1, of z^2 and of x^4 y^2 over the sphere."""
    sphere = make(7, 9)
    x, y, z = sphere.points.T
    for f, integral in ((1 + 0 * z, 4), (z**2, 4 / 3), (x**4 * y**2, 4 * 3 / 105)):
        assert abs(sphere.areas @ f - integral * math.pi) < 1e-12
    assert (np.diff(sphere.colatitudes) > 0).all()
    assert sphere.weights.min() > 0


def test_a_turn_by_longitudes_turns_the_result():
    q, k, v = qkv(1, 24, 2, 8)
    for cutoff in (None, 0.9):
        run = lambda *x, cutoff=cutoff: spherical_attention(
            *x, sphere=equal_angles(4, 6), cutoff=cutoff
        )
        turn = lambda x: np.roll(np.asarray(x).reshape(1, 4, 6, 2, 8), 2, axis=2).reshape(x.shape)
        near(run(turn(q), turn(k), turn(v)), turn(run(q, k, v)))


def test_neighborhoods_are_disks():
    """Near a pole they have every longitude, at the equator few."""
    q, k, _ = qkv(1, 8 * 12, 1, 8)
    sphere = equal_angles(8, 12)
    seen = weights_of(spherical_attention, q, k, sphere=sphere, cutoff=math.pi / 7)[0, 0] > 0
    seen = seen.reshape(8, 12, 8, 12)
    assert seen[0, 0, 1].all()
    assert seen[3, 5, 3].sum() == 1
    assert not seen[0, 0, 2:].any()
    near(
        weights_of(spherical_attention, q, k, sphere=sphere, cutoff=4.0).sum(-1),
        np.ones((1, 1, 96)),
    )


def test_a_finer_grid_of_keys_says_nearly_the_same():
    """Keys and values are functions of the place: the result is an integral."""
    q, frame = draw(1, 4, 1, 3), np.asarray(draw(3, 3, seed=1))

    def read(sphere):
        k = jnp.asarray((sphere.points @ frame)[None, :, None], float)
        return spherical_attention(q, k, k**2, sphere=sphere)

    coarse, fine = read(equal_angles(9, 16)), read(gauss_legendre(24, 48))
    near(coarse, fine, 1e-4)


def test_grids_of_other_sizes_are_refused():
    q, k, v = qkv(1, 12, 2, 8)
    with pytest.raises(ValueError, match="sphere: 10 cells; expected S = 12"):
        spherical_attention(q, k, v, sphere=equal_angles(2, 5))
    with pytest.raises(ValueError, match="queries: 10 cells; expected T = 12"):
        sphere, queries = equal_angles(3, 4), equal_angles(2, 5)
        spherical_attention(q, k, v, sphere=sphere, queries=queries, cutoff=1.0)
