"""Feature maps: what each promises, and the running maximum against a loop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from attnjax import features, parallel
from attnjax.core import numerics
from attnjax.core.recurrence.documents import packed
from attnjax.core.sharding import LOCAL
from tests.helpers import draw
from tests.helpers import near as close

H = 6


# ------------------------------------------------------------------------------- elementwise maps


def test_elementwise_maps_are_their_formulas():
    x = jnp.asarray([-3.0, -0.5, 0.0, 0.5, 3.0])
    close(features.identity(x), x)
    close(features.elu1(x), [math.exp(-3), math.exp(-0.5), 1.0, 1.5, 4.0])
    close(features.relu(x), [0, 0, 0, 0.5, 3.0])
    close(features.relu2(x), [0, 0, 0, 0.25, 9.0])
    close(features.exp(x), np.exp(x))
    close(features.log_normal(0.5)(x), np.exp(0.5 * np.asarray(x)))


def test_softmax_of_features_sums_to_one_for_each_token():
    x = draw(2, 3, 4, H)
    y = np.asarray(features.softmax(x))
    close(y.sum(-1), np.ones((2, 3, 4)))
    close(y / y[..., :1], np.exp(x - x[..., :1]))


# ------------------------------------------------------------------------------- normalized maps


def test_cosine_has_length_one_and_keeps_the_direction():
    x = draw(5, H, scale=3.0)
    y = features.cosine(x)
    close(jnp.sum(y * y, -1), np.ones(5))
    close(y * jnp.linalg.norm(x, axis=-1, keepdims=True), x)
    close(features.cosine(7.0 * x), y)


def test_cosine_of_zero_is_zero_without_gradient():
    x = draw(3, H).at[1].set(0.0)
    assert not np.any(features.cosine(x)[1])
    grad = jax.grad(lambda x: jnp.sum(jnp.sin(features.cosine(x))))(x)
    assert np.isfinite(grad).all() and not np.any(grad[1]) and np.any(grad[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_cosine_spoils_the_token_that_is_not_finite_but_no_gradient(bad):
    x = draw(3, H).at[1, 2].set(bad)
    assert np.isnan(features.cosine(x)[1]).all()
    masked = lambda x: jnp.sum(jnp.where(jnp.arange(3)[:, None] == 1, 0.0, features.cosine(x)))
    value, grad = jax.value_and_grad(masked)(x)
    assert np.isfinite(value) and np.isfinite(grad).all() and not np.any(grad[1])


def test_standardized_features_have_mean_zero_and_deviation_one():
    x = 3.0 + draw(5, H, scale=2.0)
    y = np.asarray(features.standardize(x))
    close(y.mean(-1), np.zeros(5))
    close(y.std(-1), np.ones(5))
    close(features.standardize(2.0 * x - 5.0), y)
    assert not np.any(features.standardize(jnp.full((2, 4), 3.0)))


# -------------------------------------------------------------------------------- Taylor features


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_products_of_taylor_features_are_the_series(order):
    q, k = draw(4, H, seed=1), draw(4, H, seed=2)
    phi = features.taylor(order)
    x = np.sum(np.asarray(q) * np.asarray(k), -1)
    close(jnp.sum(phi(q) * phi(k), -1), sum(x**l / math.factorial(l) for l in range(order + 1)))
    assert phi(q).shape[-1] == sum(H**l for l in range(order + 1))


@pytest.mark.parametrize("order", [-1, 1.0, None])
def test_taylor_refuses_an_order_that_is_none(order):
    with pytest.raises(ValueError, match="order"):
        features.taylor(order)


# -------------------------------------------------------------------------------- random features


def kernels(phi, draws, rows, q, k, seed=0):
    """Estimates (draws,) of a kernel, one for each projection that `rows` draws."""

    def estimate(key):
        w = rows(key)
        return phi(w, q) @ phi(w, k)

    return np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(seed), draws)))


def positive(w, x):
    return jnp.exp(features.log_favor(w)(x))


def fourier(w, x):
    return features.trigonometric(w)(x)


R = 2 * H  # two blocks of orthogonal rows
orthogonal = lambda key: features.orthogonal_rows(key, R, H)
independent = lambda key: jax.random.normal(key, (R, H))
unit = lambda seed, length: length * features.cosine(draw(H, seed=seed))


def within_errors(estimates, truth):
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) < 4 * error
    assert error < 0.05 * truth  # the test could tell


@pytest.mark.parametrize("rows", [orthogonal, independent], ids=["orthogonal", "independent"])
@pytest.mark.parametrize("phi", [positive, fourier], ids=["positive", "fourier"])
def test_random_features_estimate_the_exponential_without_bias(phi, rows):
    q, k = unit(1, 0.9), unit(2, 0.9)
    within_errors(kernels(phi, 4000, rows, q, k), math.exp(float(q @ k)))


def test_orthogonal_rows_have_less_variance_than_independent_ones():
    """By at least a tenth here, says theorem 2 of the paper, for a block of H = 6 rows."""
    block = lambda key: features.orthogonal_rows(key, H, H)
    free = lambda key: jax.random.normal(key, (H, H))
    variance = lambda rows, q: kernels(positive, 16000, rows, q, q).var()
    for seed in (1, 2):
        q = unit(seed, 0.42)
        assert 0.7 < variance(block, q) / variance(free, q) < 0.95


def test_positive_features_err_less_than_fourier_features_where_weights_are_small():
    q = unit(1, 2.0)
    small, large = math.exp(-4.0), math.exp(4.0)
    mean_square = lambda phi, k, truth: np.mean((kernels(phi, 2000, orthogonal, q, k) - truth) ** 2)
    assert mean_square(positive, -q, small) < 0.1 * mean_square(fourier, -q, small)
    assert mean_square(positive, q, large) > mean_square(fourier, q, large)


def test_the_error_of_positive_features_falls_as_one_over_the_root_of_their_number():
    q, k = unit(5, 0.9), unit(6, 0.9)
    spread = lambda n: kernels(
        positive, 2000, lambda key: features.orthogonal_rows(key, n, H), q, k
    ).std()
    ratio = spread(H) / spread(16 * H)
    assert 3.4 < ratio < 4.7


def test_rows_are_orthogonal_within_blocks_and_gaussian_alone():
    w = np.asarray(features.orthogonal_rows(jax.random.key(0), 2 * H + 2, H))
    assert w.shape == (2 * H + 2, H)
    for block in (w[:H], w[H : 2 * H], w[2 * H :]):
        gram = block @ block.T
        close(gram - np.diag(np.diag(gram)), np.zeros_like(gram), tolerance=1e-4)
    keys = jax.random.split(jax.random.key(1), 2000)
    first = np.asarray(jax.vmap(orthogonal)(keys))[:, 0]
    assert np.abs(first.mean(0)).max() < 0.1
    close(first.T @ first / 2000, np.eye(H), tolerance=0.15)
    assert abs((first**2).sum(1).mean() - H) < 0.4


def test_random_relu_features_are_positive_and_their_formula():
    w, x = draw(R, H, seed=3), draw(5, H, seed=4)
    y = np.asarray(features.random_relu(w, 0.01)(x))
    assert (y > 0).all()
    close(y, (np.maximum(np.asarray(x) @ np.asarray(w).T, 0) + 0.01) / math.sqrt(R))


def test_log_hedgehog_is_each_heads_map_and_its_negative():
    w, x = draw(3, H, 5, seed=1), draw(2, 4, 3, H, seed=2)
    y = features.log_hedgehog(w)(x)
    assert y.shape == (2, 4, 3, 10)
    for n in range(3):
        close(y[:, :, n, :5], np.asarray(x[:, :, n]) @ np.asarray(w[n]))
    close(y[..., 5:], -y[..., :5])


# ----------------------------------------------------------------------------- the running maximum


def loop(write, decay, before=None):
    """m and the decays that it asks for, token by token, for one sequence."""
    ms, asked, m = [], [], before
    for a, w in zip(decay, write, strict=True):
        new = w if m is None else max(m + a, w)
        asked.append(None if m is None else a + m - new)
        ms.append(new)
        m = new
    return ms, asked


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_the_running_maximum_is_that_of_the_loop(decays, known):
    B, S, N = 2, 7, 3
    write = draw(B, S, N, scale=3.0)
    decay = -jnp.abs(draw(B, S, N, seed=1)) if decays else None
    before = draw(B, N, seed=2) if known else None
    m, asked, _ = features.running_max(write, decay, before)
    assert (np.asarray(asked) <= 0).all()
    for b, n in np.ndindex(B, N):
        steps = np.zeros(S) if decay is None else np.asarray(decay[b, :, n])
        start = None if before is None else float(before[b, n])
        want, wanted = loop(np.asarray(write[b, :, n]), steps, start)
        close(m[b, :, n], want)
        skipped = 1 if before is None else 0  # without a state the first decay does not matter
        close(asked[b, skipped:, n], wanted[skipped:])


def test_the_running_maximum_keeps_sums_of_huge_exponentials():
    write = jnp.asarray([[[-400.0], [300.0], [299.0], [-5.0]]])
    m, decay, _ = features.running_max(write)
    total, sums = 0.0, []
    for t in range(4):
        total = total * math.exp(decay[0, t, 0]) + math.exp(write[0, t, 0] - m[0, t, 0])
        sums.append(math.log(total) + float(m[0, t, 0]))
    close(sums, [-400.0, 300.0, 300.0 + math.log1p(math.exp(-1)), 300.0 + math.log1p(math.exp(-1))])


def test_the_running_maximum_is_finite_where_nothing_is_written():
    write = jnp.asarray([[[-jnp.inf], [-jnp.inf], [2.0], [-jnp.inf]]])
    m, decay, _ = features.running_max(write)
    assert np.isfinite(m).all() and not np.isnan(decay).any()
    close(jnp.exp(write - m)[0, :, 0], [0, 0, 1, 0])
    close(decay[0, 3, 0], 0.0)


def test_the_running_maximum_does_not_look_ahead_and_can_be_split():
    write, decay = draw(2, 8, 3, scale=2.0), -jnp.abs(draw(2, 8, 3, seed=1))
    m, asked, _ = features.running_max(write, decay)
    m_1, asked_1, last = features.running_max(write[:, :5], decay[:, :5])
    m_2, asked_2, _ = features.running_max(write[:, 5:], decay[:, 5:], last)
    close(jnp.concatenate([m_1, m_2], 1), m)
    close(jnp.concatenate([asked_1, asked_2], 1), asked)


def test_the_running_maximum_begins_anew_with_each_document():
    write, decay = draw(1, 9, 3, scale=2.0), -jnp.abs(draw(1, 9, 3, seed=1))
    ids = np.asarray([[5, 5, 5, -1, 2, 2, 2, 2, 9]])
    m, asked, last = features.running_max(write, decay, documents=packed(ids, (1, 9)))
    for start, stop in ((0, 3), (4, 8), (8, 9)):
        alone, fades, _ = features.running_max(write[:, start:stop], decay[:, start:stop])
        close(m[:, start:stop], alone)
        close(asked[:, start + 1 : stop], fades[:, 1:])
        assert start == 0 or not np.asarray(asked[:, start]).any()
    close(m[:, 3], m[:, 2])  # padding leaves it
    close(last, m[:, -1])


@pytest.mark.parametrize("documents", [False, True])
def test_the_running_maximum_is_that_of_the_whole_text_on_any_device(documents):
    write, decay = draw(1, 8, 3, scale=2.0), -jnp.abs(draw(1, 8, 3, seed=1))
    ids = np.asarray([[5, 5, 5, 5, 5, 2, 2, 2]])
    axis = parallel.LASP2("sp")

    def run(write, decay, ids, impl=None):
        where = axis.sharding if impl else LOCAL
        of = packed(ids, write.shape[:2], None, where) if documents else None
        return tuple(features.running_max(write, decay, documents=of, impl=impl))

    mesh = jax.make_mesh((2,), ("sp",), (AxisType.Auto,), devices=jax.devices()[:2])
    over = functools.partial(jax.shard_map, mesh=mesh, in_specs=P(None, "sp"), check_vma=False)
    spread = over(functools.partial(run, impl=axis), out_specs=(P(None, "sp"),) * 2 + (P(),))
    for got, want in zip(jax.jit(spread)(write, decay, ids), run(write, decay, ids), strict=True):
        close(got, want)


# ---------------------------------------------------------------------------------- the division


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-25, -1e-25])
def test_a_quotient_of_tiny_numbers_has_the_gradient_of_their_ratio(size):
    x, y = jnp.float32(3 * size), jnp.float32(2 * size)
    value, (dx, dy) = jax.value_and_grad(numerics.divide_stably, (0, 1))(x, y)
    close([value, dx * size, dy * size], [1.5, 0.5, -0.75])


def test_a_quotient_by_zero_is_zero_without_gradient():
    for mass in (0.0, 1e-37):
        value, grad = jax.value_and_grad(numerics.divide_stably, (0, 1))(
            jnp.float32(1e-37), jnp.float32(mass)
        )
        assert value == 0 and grad == (0, 0)
