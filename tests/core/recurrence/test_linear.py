"""Engine 2: the recurrence, its chunked form, states, strong decays, and what bad input is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import Chunked, explain, linear_attend, normalizers
from attnjax.core.recurrence.chunked import inverse
from attnjax.core.recurrence.linear import State
from tests.helpers import close

B, T, N, K, H, D = 2, 11, 4, 2, 8, 5


def draw(shape, seed, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def qkv(T=T, dtype=np.float64, seed=0):
    q, k, v = (
        draw(s, seed + i, dtype) for i, s in enumerate([(B, T, N, H), (B, T, K, H), (B, T, K, D)])
    )
    return q, k / np.linalg.norm(k, axis=-1, keepdims=True), v


def gates(T=T, seed=10):
    """Decays of every kind, and beta."""
    positive = lambda shape, seed: np.abs(draw(shape, seed))
    decays = {
        "none": None,
        "head": -positive((N,), seed),
        "token": -positive((B, T, N), seed + 1),
        "channel": -2 * positive((B, T, N, H), seed + 2),
    }
    return decays, np.random.default_rng(seed).uniform(0, 2, (B, T, N))


def truth(q, k, v, log_decay=None, beta=None, block=1, memory=None):
    """The recurrence in loops, and the last state."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (B, T, N, H), (S, K, D) = q.shape, v.shape[1:]
    out = np.zeros((B, T, N, D))
    states = np.zeros((B, N, H, D)) if memory is None else np.array(memory, np.float64)
    for b, n in np.ndindex(B, N):
        seen, M = [], states[b, n]
        for t in range(S):
            g = 0.0
            if log_decay is not None:
                g = log_decay[n] if log_decay.ndim == 1 else log_decay[b, t, n]
            key, value = k[b, t, n * K // N], v[b, t, n * K // N]
            M = np.exp(g) * M if np.ndim(g) == 0 else np.exp(g)[:, None] * M
            wrote = value if beta is None else beta[b, t, n] * (value - key @ M)
            M = M + np.outer(key, wrote)
            seen.append(M)
        states[b, n] = M
        for t in range(T):
            last = S - 1 if block is None else min(t // block * block + block, S) - 1
            out[b, t, n] = q[b, t, n] @ seen[last]
    return out, states


# ---------------------------------------------------------------------------------- the forms

FORMS = {"recurrent": "recurrent", "chunked": Chunked(4), "parallel": "parallel"}


@pytest.mark.parametrize("decay", gates()[0])
@pytest.mark.parametrize("delta", [False, True], ids=["sums", "delta"])
def test_every_form_is_the_recurrence(decay, delta):
    with jax.enable_x64():
        q, k, v = qkv()
        decays, beta = gates()
        start = draw((B, N, H, D), 5)
        options = {"log_decay": decays[decay], "beta": beta if delta else None}
        for block in (1, 3, None):
            want = truth(q, k, v, block=block, memory=start, **options)
            for impl in FORMS.values():
                out, state = jax.jit(
                    lambda s, impl=impl, block=block: linear_attend(
                        q, k, v, block=block, state=s, return_state=True, impl=impl, **options
                    )
                )(State(jnp.asarray(start)))
                close(out, want[0])
                close(state.memory, want[1])


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("delta", [False, True], ids=["sums", "delta"])
def test_gradients_of_the_forms_agree_to_every_argument_and_the_state(decay, delta):
    with jax.enable_x64():
        q, k, v = map(jnp.asarray, qkv(T=37))
        decays, beta = gates(T=37)
        args = (q, k, v, jnp.asarray(decays[decay]), jnp.asarray(draw((B, N, H, D), 5)))
        extra = (jnp.asarray(beta),) if delta else ()

        def pulled(impl, block):
            def f(q, k, v, g, s, *beta):
                out, last = linear_attend(
                    q, k, v, log_decay=g, beta=beta[0] if beta else None, state=State(s),
                    return_state=True, block=block, impl=impl,
                )  # fmt: skip
                return jnp.sum(jnp.sin(3 * out)) + jnp.sum(jnp.cos(last.memory))

            return jax.jit(jax.grad(f, argnums=tuple(range(len(args) + len(extra)))))(*args, *extra)

        # chunks of 16 are halved once, of 32 twice, where decays differ by channel
        for block, chunk in ((1, 32), (2, 16)):
            for got, want in zip(
                pulled(Chunked(chunk), block), pulled("recurrent", block), strict=True
            ):
                close(got, want)


def test_a_normalized_run_divides_by_the_mass_and_carries_it():
    with jax.enable_x64():
        q, k, v = (np.abs(x) for x in qkv())
        decays, _ = gates()
        options = {"log_decay": decays["token"], "normalize": normalizers.divide}
        ones = np.ones((*v.shape[:3], 1))
        values, _ = truth(q, k, v, decays["token"])
        denominator, _ = truth(q, k, ones, decays["token"])
        for impl in FORMS.values():
            close(linear_attend(q, k, v, impl=impl, **options), values / denominator)
        head = {**options, "log_decay": decays["token"][:, :6]}
        _, state = linear_attend(q[:, :6], k[:, :6], v[:, :6], return_state=True, **head)
        tail = {**options, "log_decay": decays["token"][:, 6:]}
        rest = linear_attend(q[:, 6:], k[:, 6:], v[:, 6:], state=state, **tail)
        close(rest, (values / denominator)[:, 6:])


def test_both_directions_take_keys_of_another_length():
    with jax.enable_x64():
        q, k, v = qkv()
        shorter = linear_attend(q[:, :4], k, v, block=None)
        full = np.einsum("bthe,bshe->bhts", q, np.repeat(k, N // K, axis=2))
        want = np.einsum("bhts,bshd->bthd", full, np.repeat(v, N // K, axis=2))
        close(shorter, want[:, :4])


def test_the_inverse_of_a_triangular_matrix_and_its_derivative():
    with jax.enable_x64():
        for size in (1, 2, 7, 12):
            lower = np.tril(draw((3, size, size), size), -1)
            close(inverse(jnp.asarray(lower)), np.linalg.inv(np.eye(size) + lower))
        step = np.tril(draw((3, 12, 12), 1), -1)
        slope = jax.jvp(inverse, (jnp.asarray(lower),), (jnp.asarray(step),))[1]
        e = 1e-6
        ahead, behind = (inverse(jnp.asarray(lower + s * e * step)) for s in (1, -1))
        close(slope, (ahead - behind) / (2 * e), 1e-5)


# ------------------------------------------------------------------------------------ numerics


@pytest.mark.parametrize("decay", ["token", "channel"])
@pytest.mark.parametrize("impl", [Chunked(32), "parallel", "recurrent"], ids=str)
def test_strong_decays_neither_overflow_nor_lose_what_they_keep(decay, impl):
    q, k, v = qkv(T=32, dtype=np.float32)
    shape = (B, 32, N) if decay == "token" else (B, 32, N, H)
    pick = np.random.default_rng(0).random(shape)
    log_decay = np.select([pick < 0.2, pick < 0.4, pick < 0.5], [-30.0, -90.0, -np.inf], -0.01)
    log_decay = log_decay.astype(np.float32)

    def both(g):
        loss = lambda g: jnp.sum(jnp.sin(linear_attend(q, k, v, log_decay=g, impl=impl)))
        return linear_attend(q, k, v, log_decay=g, impl=impl), jax.grad(loss)(g)

    out, grad = jax.jit(both)(log_decay)
    close(out, truth(q, k, v, np.asarray(log_decay, np.float64))[0], 2e-5)
    assert np.isfinite(grad).all()


def test_bfloat16_keeps_float32_states():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in qkv())
    out, state = linear_attend(q, k, v, return_state=True, normalize=normalizers.divide)
    assert out.dtype == jnp.bfloat16
    assert state.memory.dtype == state.denominator.dtype == jnp.float32
    assert linear_attend(q.astype(jnp.float32), k, v).dtype == jnp.bfloat16


@pytest.mark.parametrize("impl", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("where", ["q", "k", "v", "log_decay", "beta"])
def test_a_nan_reaches_the_queries_that_read_after_it_and_no_other(impl, where):
    args = dict(zip("qkv", map(jnp.asarray, qkv(dtype=np.float32)), strict=True))
    decays, beta = gates()
    args |= {"log_decay": jnp.float32(decays["token"]), "beta": jnp.float32(beta)}
    args[where] = args[where].at[0, 5].set(jnp.nan)
    out, state = linear_attend(**args, return_state=True, impl=impl)
    spoiled = np.isnan(np.asarray(out)).any((2, 3))
    expected = np.arange(T) == 5 if where == "q" else np.arange(T) >= 5
    assert (spoiled[0] == expected).all() and not spoiled[1].any()
    assert np.isnan(state.memory[0]).any() == (where != "q")
    assert not np.isnan(state.memory[1]).any()
    if impl != "recurrent":
        early = lambda args: jnp.sum(linear_attend(**args, impl=impl)[:, :5] ** 2)
        assert all(np.isfinite(g[:, :5]).all() for g in jax.grad(early)(args).values())


def test_the_backward_pass_keeps_no_state_of_every_token():
    """Of bytes at once: linear in T, far fewer than T x H x D; the recurrent form needs those."""

    def bytes_needed(T, impl):
        x = jnp.zeros((1, T, 1, 32))
        loss = lambda q, k, v: jnp.sum(jnp.sin(linear_attend(q, k, v, impl=impl)))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = (bytes_needed(T, Chunked(32)) for T in (1024, 2048))
    states = 2048 * 32 * 32 * 4
    assert long < 2.2 * short and long < states / 2
    assert bytes_needed(2048, "recurrent") > states


# ------------------------------------------------------------------------------------ messages


def test_explain_tells_of_linear_calls():
    q, k, v = (jnp.asarray(x, jnp.float32) for x in qkv())
    told = str(explain(linear_attend, q, k, v, log_decay=jnp.zeros(N), impl="parallel"))
    assert "linear_attend: B=2, T=11, S=11, N=4, K=2, H=8, D=5, float32" in told
    assert "-> parallel   runs: asked for" in told and "chunked    could run" in told


BAD = {
    "log_decay is positive": ({"log_decay": np.full(N, 0.5)}, "log_decay holds 0.5, expected at"),
    "log_decay is misshapen": (
        {"log_decay": np.zeros((B, T))},
        r"log_decay has shape \(2, 11\), expected \(N\) = \(4,\) or \(B,S,N\) = \(2, 11, 4\) or",
    ),
    "beta is large": ({"beta": np.full((B, T, N), 2.5)}, "beta holds 2.5, expected 0 to 2"),
    "beta is negative": ({"beta": np.full((B, T, N), -1.0)}, "beta holds -1, expected 0 to 2"),
    "beta is misshapen": ({"beta": np.zeros((B, T))}, r"beta has shape \(2, 11\), expected"),
    "beta and normalize": (
        {"beta": np.ones((B, T, N)), "normalize": normalizers.divide},
        "normalize and beta were given, expected one of them",
    ),
    "chunk is zero": ({"chunk": 0}, "chunk is 0, expected an integer of at least 1"),
    "chunk is no integer": ({"chunk": 2.5}, "chunk is 2.5, expected an integer"),
    "block is zero": ({"block": 0}, "block is 0, expected None or at least 1"),
    "state is misshapen": (
        {"state": State(np.zeros((B, N, H, H), np.float32))},
        r"state.memory has shape \(2, 4, 8, 8\), expected \(B,N,H,D\) = \(2, 4, 8, 5\)",
    ),
    "state has a denominator": (
        {"state": State(np.zeros((B, N, H, D), np.float32), np.zeros((B, N, H), np.float32))},
        "state keeps a denominator, expected one of a call without normalize",
    ),
    "state has no denominator": (
        {"state": State(np.zeros((B, N, H, D), np.float32)), "normalize": normalizers.divide},
        "state keeps no denominator, expected one of a call with normalize",
    ),
    "impl is unknown": ({"impl": "chunkd"}, "impl is 'chunkd', .* did you mean 'chunked'"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_values_are_told(options, message):
    q, k, v = qkv(dtype=np.float32)
    with pytest.raises(ValueError, match="linear_attend: " + message):
        linear_attend(q, k, v, **options)


def test_bad_kinds_are_told():
    q, k, v = qkv(dtype=np.float32)
    half = State(np.zeros((B, N, H, D), np.float16))
    for options, message in (
        ({"state": half}, "state.memory has dtype float16, expected float32"),
        ({"state": np.zeros((B, N, H, D))}, "state is ndarray, expected linear.State"),
        ({"beta": np.ones((B, T, N), np.int32)}, "beta has dtype int32, expected a floating-point"),
        ({"impl": 3}, "impl is 3, expected None, a name or"),
    ):
        with pytest.raises(TypeError, match=message):
            linear_attend(q, k, v, **options)
    with pytest.raises(ValueError, match="T = 4 and S = 11 with block 1, expected T = S"):
        linear_attend(q[:, :4], k, v)
    with pytest.raises(ValueError, match="linear_attend: k has head width H = 5"):
        linear_attend(q, v, v)
