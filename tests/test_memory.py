"""What the papers of memories, convolutions and scans say beyond the formulas."""

import importlib
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core import features, masks, normalizers
from attnjax.core.normalizers import laplace
from attnjax.core.numerics import Affine, rms_norm
from attnjax.core.pairwise.attend import attend
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.scan.convolution import causal_conv, depthwise, long_conv
from attnjax.core.scan.diagonal import linear_scan
from attnjax.op import Sizes
from attnjax.ops.linear_recurrent import (
    chela,
    damped_ema,
    damped_ema_convolution,
    infini_attention,
    infini_delta_attention,
    lavo,
    mambattention,
    mega,
    memory_as_gate,
    multiscale_scan,
    selective_ssm,
    titans_memory,
)
from attnjax.ops.linear_recurrent.chela import merged
from attnjax.ops.linear_recurrent.damped_ema import sample_ema
from attnjax.ops.linear_recurrent.mambattention import attend_along
from attnjax.ops.linear_recurrent.multiscale_scan import ROUTES, conv_ffn, flatten, unflatten
from attnjax.ops.linear_recurrent.titans import network
from attnjax.ops.linear_recurrent.titans_gate import Persistent

multiscale = importlib.import_module(multiscale_scan.__module__)  # its function has its name

B, T, N, K, H, D = 2, 12, 4, 2, 6, 5


def draw(*shapes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def record(op):
    return importlib.import_module(op.__module__).VARIANT


def close(got, want, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want
    )


# ------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize(("L", "length"), [(1, 33), (5, 100), (100, 100), (150, 70), (40, 1)])
def test_a_long_convolution_by_fft_is_the_direct_one(L, length):
    x, kernel, before = map(np.asarray, draw((B, length, 3), (L, 3), (B, L - 1, 3)))
    for given in (None, before):
        y, last = jax.jit(long_conv)(x, kernel, given)
        joined = np.concatenate([np.zeros_like(before) if given is None else before, x], axis=1)
        want = [sum(kernel[j] * joined[:, L - 1 + t - j] for j in range(L)) for t in range(length)]
        close(y, np.stack(want, axis=1), 2e-5)
        assert np.array_equal(last, joined[:, length:])


def test_a_long_convolution_keeps_the_future_out():
    x, kernel = draw((B, 100, 3), (100, 3))
    y = jax.jit(lambda x: long_conv(x, kernel)[0])
    assert np.array_equal(y(x.at[:, 70:].set(1e6))[:, :70], y(x)[:, :70])
    grad = jax.grad(lambda x: jnp.sin(y(x)[:, :70]).sum())(x)
    assert not grad[:, 70:].any() and grad[:, :70].any()


@pytest.mark.parametrize("k", [1, 4])
def test_a_causal_convolution_goes_on_where_it_stopped(k):
    x, kernel = draw((B, T, 3), (k, 3))
    whole, last = causal_conv(x, kernel)
    padded = np.concatenate([np.zeros((B, k - 1, 3)), x], axis=1)
    flipped = np.asarray(kernel)[::-1]
    close(whole, np.stack([(padded[:, t : t + k] * flipped).sum(1) for t in range(T)], axis=1))
    first, state = causal_conv(x[:, :2], kernel)
    second, again = causal_conv(x[:, 2:], kernel, state)
    close((jnp.concatenate([first, second], axis=1), again), (whole, last))


@pytest.mark.parametrize("kernel_shape", [(3,), (4,), (3, 5), (3, 2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_keeps_the_grid(kernel_shape, stride):
    grid = (5, 4, 3)[: len(kernel_shape)]
    x, kernel = map(np.asarray, draw((B, *grid, 3), (*kernel_shape, 3)))
    got = np.asarray(depthwise(jnp.asarray(x), jnp.asarray(kernel), stride))
    assert got.shape[1:-1] == tuple(-(-n // stride) for n in grid)
    for at in np.ndindex(*got.shape[1:-1]):
        want = 0
        for j in np.ndindex(*kernel_shape):
            place = stride * np.array(at) + j - (np.array(kernel_shape) - 1) // 2
            if (place >= 0).all() and (place < grid).all():
                want += kernel[j] * x[(slice(None), *place)]
        close(got[(slice(None), *at)], want)


def test_a_linear_scan_is_its_recurrence():
    decay, add, x = draw((T, 2, 1), (T, 2, 3), (2, 3))
    got = linear_scan(decay, add, x)
    for t in range(T):
        x = decay[t] * x + add[t]
        close(got[t], x)


# ----------------------------------------------------------------------------- infini-attention


both_rules = pytest.mark.parametrize("op", [infini_attention, infini_delta_attention])


def qkv(length=T, seed=0):
    return draw((B, length, N, H), (B, length, K, H), (B, length, K, D), seed=seed)


@both_rules
def test_segments_by_scan_are_those_of_a_loop_that_carries_a_state(op):
    q, k, v = qkv()
    beta = jnp.linspace(-1.0, 1.0, N)
    run = lambda at, state: op(
        q[:, at], k[:, at], v[:, at], beta, segment=4, state=state, return_state=True
    )
    whole, last = run(slice(T), None)
    outs, state, sizes = [], None, set()
    for start in range(0, T, 4):
        out, state = run(slice(start, start + 4), state)
        outs.append(out)
        sizes.add(tuple(x.shape for x in state))
    close((jnp.concatenate(outs, axis=1), state), (whole, last))
    assert sizes == {((B, N, H, D), (B, N, H))}


@both_rules
def test_an_open_gate_reads_earlier_segments_only(op):
    q, k, v = qkv()
    run = jax.jit(lambda k, v: op(q, k, v, jnp.full(N, 100.0), segment=4))
    out = run(k, v)
    assert not out[:, :4].any()
    own = slice(4, 8)
    changed = run(k.at[:, own].add(1.0), v.at[:, own].add(1.0))
    assert np.array_equal(changed[:, :8], out[:, :8])
    assert (jnp.abs(changed - out)[:, 8:] > 1e-4).any(-1).all()
    if op is infini_attention:
        phi, keys = features.elu1, jnp.repeat(k, 2, axis=2)[:, :4]
        w = jnp.einsum("BtNH,BsNH->BNts", phi(q[:, own]), phi(keys))
        want = jnp.einsum("BNts,BsND->BtND", w, jnp.repeat(v, 2, axis=2)[:, :4])
        close(out[:, own], want / w.sum(-1).transpose(0, 2, 1)[..., None])


def test_the_delta_rule_writes_nothing_for_what_is_known():
    q, k, v = qkv(1)
    twice = lambda x: jnp.concatenate([x, x], axis=1)
    run = lambda op, *qkv: op(*qkv, jnp.zeros(N), segment=1, return_state=True)[1].memory
    once = run(infini_delta_attention, q, k, v)
    close(run(infini_delta_attention, *map(twice, (q, k, v))), once)
    close(run(infini_attention, *map(twice, (q, k, v))), 2 * once)


@both_rules
def test_a_position_code_acts_on_the_local_part_alone(op):
    q, k, v = qkv()
    coded = lambda beta: op(q, k, v, jnp.full(N, beta), segment=4, code=lambda x: 2 * x)
    plain = lambda beta: op(q, k, v, jnp.full(N, beta), segment=4)
    close(coded(100.0), plain(100.0))
    close(coded(-100.0), op(2 * q, 2 * k, v, jnp.full(N, -100.0), segment=4))
    assert not np.allclose(coded(-100.0), plain(-100.0))


# ---------------------------------------------------------------------------------------- titans


def gates(seed=1):
    shapes = [(B, T, N)] * 3
    eta, theta, alpha = map(jax.nn.sigmoid, draw(*shapes, seed=seed))
    return eta, 0.1 * theta, 0.5 * alpha


def deep(seed=2):
    return tuple(0.4 * w for w in draw((N, H, 3), (N, 3, D), seed=seed))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_memory_of_any_depth_learns_by_its_gradient(layers):
    """One token, one head: M = W - theta dloss/dW."""
    widths = [H, *[3] * (layers - 1), D]
    weights = tuple(draw(*((1, a, b) for a, b in pairwise(widths))))
    k, v, q = draw((H,), (D,), (H,), seed=1)
    loss = lambda w: jnp.sum((network(w, k) - v) ** 2)
    own = jax.tree.map(lambda w: w[0], weights)
    after = jax.tree.map(lambda w, g: w - 0.1 * g, own, jax.grad(loss)(own))
    one = lambda x: x[None, None, None]
    gate = lambda x: jnp.full((1, 1, 1), x)
    out = titans_memory(one(q), one(k), one(v), gate(0.9), gate(0.1), gate(0.0), weights)
    close(out[0, 0, 0], network(after, q))
    assert not np.allclose(network(after, q), network(own, q), atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_memory_goes_on_at_the_end_of_a_chunk(chunk):
    q, k, v = qkv()
    run = lambda at, state: titans_memory(
        q[:, at], 0.3 * k[:, at], v[:, at], *(g[:, at] for g in gates()), deep(),
        chunk=chunk, state=state, return_state=True,
    )  # fmt: skip
    whole = run(slice(T), None)
    first, state = run(slice(8), None)
    second, state = run(slice(8, T), state)
    close((jnp.concatenate([first, second], axis=1), state), whole)


def test_reading_leaves_a_memory_as_it_is():
    (q, k, v), (other, _, _) = qkv(), qkv(seed=5)
    run = lambda q: titans_memory(q, 0.3 * k, v, *gates(), deep(), return_state=True)
    (out, state), (changed, same) = run(q), run(other)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, same))
    assert not np.allclose(out, changed)


def test_forgetting_takes_the_gradient_at_the_undecayed_memory():
    """The one difference from gated DeltaNet, which erases after the decay."""
    q, k, v = qkv()
    _, theta, alpha = gates()
    zero = (jnp.zeros((N, H, D)),)
    run = lambda alpha: titans_memory(q, k, v, 0 * theta, theta, alpha, zero, chunk=1)
    gated = lambda alpha: linear_attend(q, k, v, log_decay=jnp.log1p(-alpha), beta=2 * theta)
    close(run(0 * alpha), gated(0 * alpha), 1e-4)
    assert not np.allclose(run(alpha), gated(alpha), atol=1e-3)


def test_a_closed_gate_with_persistent_tokens_sees_them_always():
    (q, k, v), (memory,) = qkv(), draw((B, T, N, D), seed=3)
    pk, pv = draw((3, K, H), (3, K, D), seed=4)
    closed = jnp.full((B, T, N), -100.0)
    v_far = jnp.zeros_like(v)
    out = memory_as_gate(q, k, v_far, memory, closed, Persistent(pk, pv), window=2)
    assert (jnp.abs(out) > 1e-4).any(-1).all()
    shared = Persistent(pk[:, :1], pv[:, :1])
    both = Persistent(*(jnp.repeat(x, K, axis=1) for x in shared))
    run = lambda p: memory_as_gate(q, k, v, memory, closed, p, window=2)
    close(run(shared), run(both))
    opened = memory_as_gate(q, k, v, memory, -closed, Persistent(pk, pv), window=2)
    close(opened, memory)


# ------------------------------------------------------------------------------------------ mega


def test_a_damped_ema_by_scan_is_the_convolution():
    weights = sample_ema(jax.random.key(0), Sizes())
    x, before = draw((B, 70, 8), (B, 8, 4))
    for state in (None, before):
        run = lambda op, state=state: op(x, weights, state=state, return_state=True)
        close(run(damped_ema_convolution), run(damped_ema), 2e-5)


def test_laplace_follows_the_squared_relu_at_the_fitted_point():
    at = jnp.sqrt(0.5)
    value = lambda s: laplace.numerator(s, s, (), ())
    close(value(at), 0.5)
    close(jax.grad(value)(at), jax.grad(lambda s: jax.nn.relu(s) ** 2)(at))
    inside = value(jnp.linspace(-1.0, 1.7, 50))
    assert (inside > 0).all() and (inside < 1).all() and (jnp.diff(inside) > 0).all()


def test_mega_with_softmax_averages_where_scores_are_equal():
    variant = record(mega)
    x, w = (variant.sample()[name] for name in ("x", "weights"))
    zero = jax.tree.map(jnp.zeros_like, w)
    # no reset by the gate's maps, no path past attention: out = silu(silu(b) mean(V) u)
    w = zero._replace(
        ema=w.ema, v=w.v, u=w.u, reset=zero.reset._replace(b=zero.reset.b + 1.0),
        update=zero.update._replace(b=zero.update.b + 100.0),
    )  # fmt: skip
    v = jax.nn.silu(x @ w.v.w + w.v.b)
    mean = jnp.cumsum(v, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None]
    out = lambda o: jax.nn.silu((jax.nn.silu(1.0) * o) @ w.u)
    close(mega(x, w, normalizer=normalizers.softmax), out(mean))
    seen = jnp.arange(1, x.shape[1] + 1)[:, None]
    close(mega(x, w), out(laplace.numerator(jnp.zeros(()), None, (), ()) * mean * seen))


# ----------------------------------------------------------------------------------------- chela


def test_a_merged_kernel_is_the_sum_of_both_convolutions():
    x, long, short = draw((B, T, 3), (9, 3), (4, 3))
    want = long_conv(x, long)[0] + causal_conv(x, short)[0]
    close(long_conv(x, merged(long, short))[0], want)


def test_chela_without_convolution_and_gate_is_linear_attention():
    variant = record(chela)
    x, w = (variant.sample()[name] for name in ("x", "weights"))
    alone = jnp.zeros_like(w.short).at[0].set(1.0)
    w = w._replace(long=0 * w.long, short=alone, gate=w.gate._replace(b=w.gate.b + 1e4))
    z = jax.nn.silu(w.z(x))[:, :, None]
    q, k = (jax.nn.silu(z * kappa + mu) for kappa, mu in (w.q, w.k))
    o = linear_attend(q, k, jax.nn.silu(jnp.einsum("BTW,WND->BTND", x, w.v)))
    close(chela(x, w), jnp.einsum("BTND,NDW->BTW", rms_norm(o), w.out), 1e-4)


# ------------------------------------------------------------------------------------------ lavo


def test_an_orthogonal_memory_is_a_mean_of_constant_size():
    variant = record(lavo)
    w = variant.sample()["weights"]
    (x,) = draw((B, 20, 8))
    _, short = lavo(x[:, :5], w, return_state=True)
    _, state = lavo(x, w, return_state=True)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, short)
    mean = state.total / state.count
    close(mean, (x @ w.bases.T).mean(1))
    rows = mean[..., None] * w.bases
    gram = rows @ rows.swapaxes(1, 2)
    close(gram, jnp.einsum("BR,RS->BRS", jnp.square(mean), jnp.eye(len(w.bases))))
    assert np.array_equal(state.before, x[:, -2:])


# ------------------------------------------------------------------------- state space models


def test_a_selective_scan_in_chunks_is_the_recurrence():
    x, b, c = draw((B, 150, 3), (B, 150, 4), (B, 150, 4))
    dt, a = jax.nn.softplus(draw((B, 150, 3), seed=1)[0]), -jnp.exp(draw((3, 4), seed=2)[0])
    out, last = jax.jit(lambda *args: selective_ssm(*args, return_state=True))(x, dt, a, b, c)
    x, dt, a, b, c = map(np.asarray, (x, dt, a, b, c))
    h = np.zeros((B, 3, 4))
    for t in range(150):
        h = np.exp(dt[:, t, :, None] * a) * h + (dt * x)[:, t, :, None] * b[:, t, None]
        close(out[:, t], (h * c[:, t, None]).sum(-1), 1e-4)
    close(last, h, 1e-4)


def test_weights_of_attention_are_shared_by_the_axes():
    variant = record(mambattention)
    x, shared = (variant.sample()[name] for name in ("x", "shared"))
    summed = lambda x: sum(attend_along(x, shared, axis) for axis in (1, 2))
    swapped = lambda x: x.swapaxes(1, 2)
    close(summed(swapped(x)), swapped(summed(x)))
    rows, columns = x.shape[1:3]
    flat = x.reshape(len(x), -1, x.shape[-1])
    q, k, v = (jnp.einsum("BTW,WNH->BTNH", flat, w) for w in shared[:3])
    row, column = np.divmod(np.arange(rows * columns), columns)
    for axis, line in ((1, column), (2, row)):
        heads = attend(q, k, v, mask=masks.array(line[:, None] == line))
        want = jnp.einsum("BTNH,NHW->BTW", heads, shared.out).reshape(x.shape)
        close(attend_along(x, shared, axis), want)


def test_routes_are_permutations_and_most_are_scanned_at_half_resolution(monkeypatch):
    image = jnp.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    orders = set()
    for route in ROUTES:
        tokens = flatten(image, route)
        assert np.array_equal(unflatten(tokens, image.shape, route), image)
        orders.add(tuple(np.asarray(tokens[0, :, 0])))
    assert len(orders) == 4
    variant = record(multiscale_scan)
    args, scanned = {**variant.sample(), "x": draw((B, 8, 12, 8))[0]}, []
    inner = multiscale.selective_ssm
    counted = lambda x, *rest: (scanned.append(x.shape[1]), inner(x, *rest))[1]
    monkeypatch.setattr(multiscale, "selective_ssm", counted)
    multiscale_scan(**args)
    L = 8 * 12
    assert scanned == [L // 4, L] and len(args["routes"]) == 4  # three at once: 1.75 L


def test_a_conv_ffn_without_neighbours_is_an_mlp():
    x, up, b, down, c = draw((B, 4, 5, 3), (3, 6), (6,), (6, 3), (3,))
    alone = jnp.zeros((3, 3, 6)).at[1, 1].set(1.0)
    want = jax.nn.gelu(x @ up + b) @ down + c
    close(conv_ffn(x, Affine(up, b), alone, Affine(down, c)), want)
