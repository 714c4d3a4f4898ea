"""What the papers of gated recurrences say of them beyond the formulas, which the laws cover."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import Chunked
from attnjax.catalogue import VARIANTS
from attnjax.core.recurrence.linear import State, linear_attend
from attnjax.ops.linear_recurrent import (
    cottention,
    cottention_full,
    delta_net,
    gated_delta_net,
    gated_lightning_attention,
    gla,
    hgrn2,
    lightning_attention,
    lightning_log_decays,
    log_refined_gate,
    mamba2,
    mlstm,
    regla,
    retention,
    retention_log_decays,
    rwkv6,
    safe_exp,
    simple_gla,
)
from tests.oracles import ORACLES

B, T, N, H = 2, 9, 4, 8
BY_NAME = {variant.name: variant for variant in VARIANTS}


def draw(*shapes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def qkv(T=T, seed=0):
    return draw((B, T, N, H), (B, T, N, H), (B, T, N, H), seed=seed)


def weights_of(op, q, k, *rest, **options):
    """The (B,N,T,S) weights of an op that is linear in v, read with the identity for v."""
    S = k.shape[1]
    v = jnp.broadcast_to(jnp.eye(S)[None, :, None], (B, S, k.shape[2], S))
    return np.asarray(op(q, k, v, *rest, **options).transpose(0, 2, 1, 3))


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def exact(name, **args):
    """The oracle's result in float64."""
    return ORACLES[name](**{n: np.asarray(x, np.float64) for n, x in args.items()})


# ----------------------------------------------------------------------------------- decay gates


GATES = {  # the argument that holds the logarithm of a gate in each op
    "simple_gla": "log_decay",
    "gla": "log_decay",
    "hgrn2": "log_forget",
    "gated_delta_net": "log_decay",
    "rwkv6": "log_decay",
    "mlstm": "log_f",
}


@pytest.mark.parametrize("impl", ["recurrent", "chunked"])
@pytest.mark.parametrize("name", GATES)
def test_strong_decays_are_exact_and_finite(name, impl):
    """log_decay of -50 and of -inf, among others, in float32."""
    variant, gate = BY_NAME[name], GATES[name]
    args = variant.sample(seed=1, T=20, S=20)
    kind = jax.random.randint(jax.random.key(2), args[gate].shape, 0, 4)
    strong = jnp.where(kind == 0, -50.0, jnp.where(kind == 1, -jnp.inf, args[gate]))
    args = {**args, gate: strong.at[:, 4].set(-jnp.inf)}
    out, pull = jax.vjp(jax.jit(lambda args: variant.fn(**args, impl=impl)), args)
    close(out, exact(name, **args), 2e-5)
    assert all(np.isfinite(grad).all() for grad in pull(jnp.cos(out))[0].values())


def test_a_gate_of_zero_forgets_what_was_before():
    q, k, v = qkv()
    cut = jnp.zeros((B, T, N)).at[:, 5].set(-jnp.inf)
    close(simple_gla(q, k, v, cut)[:, 5:], linear_attend(q[:, 5:], k[:, 5:], v[:, 5:]))


def test_hgrn2_keeps_each_channel_an_average_of_values():
    """The weights of a channel sum to 1 - product of its gates, so a state stays bounded."""
    q, log_f = draw((B, T, N, H), (B, T, N, H))
    log_f = jax.nn.log_sigmoid(log_f)
    ones = jnp.ones((B, T, N, 1))
    _, state = hgrn2(q, log_f, ones, return_state=True)
    close(state.memory[..., 0], 1 - jnp.exp(log_f.sum(1)))


def test_retention_has_the_decays_of_its_paper():
    close(jnp.exp(retention_log_decays(3)), [1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7], 1e-7)
    q, k, _ = qkv()
    q, k = jnp.ones_like(q), jnp.ones_like(k)
    weights = weights_of(retention, q, k)
    close(weights[0, 0, 7, 4], (1 - 2.0**-5) ** 3 * math.sqrt(H))
    close(weights[0, 3, 7, 4], (1 - 2.0**-8) ** 3 * math.sqrt(H))


# ------------------------------------------------------------------------------------ delta rule


def orthonormal(seed=0):
    """T = H keys for each head, of length 1 and orthogonal."""
    square = jax.random.normal(jax.random.key(seed), (B, N, H, H))
    return jnp.linalg.qr(square)[0].swapaxes(1, 2)


def test_delta_net_stores_orthonormal_keys_exactly():
    k, (v,) = orthonormal(), draw((B, H, N, H))
    ones = jnp.ones((B, H, N))
    _, state = delta_net(k, k, v, ones, return_state=True)
    held = jnp.einsum("BTNH,BNHD->BTND", k, state.memory, precision="highest")
    close(held, v)
    close(delta_net(k, k, v, ones), linear_attend(k, k, v))  # nothing to correct


def test_the_delta_rule_replaces_what_a_key_held():
    """Written twice: sums read back both values, the delta rule with beta = 1 the new one."""
    k, (old, new) = orthonormal(), draw((B, H, N, H), (B, H, N, H))
    twice = jnp.concatenate([k, k[:, :1]], axis=1)
    values = jnp.concatenate([old, new[:, :1]], axis=1)
    out = delta_net(twice, 3.0 * twice, values, jnp.ones((B, H + 1, N)))
    close(out[:, -1], new[:, 0])
    close(linear_attend(twice, twice, values)[:, -1], old[:, 0] + new[:, 0])
    half = delta_net(twice, twice, values, jnp.ones((B, H + 1, N)).at[:, -1].set(0.5))
    close(half[:, -1], (old[:, 0] + new[:, 0]) / 2)
    others = delta_net(
        jnp.concatenate([twice, k[:, 1:]], axis=1),
        jnp.concatenate([twice, k[:, 1:]], axis=1),
        jnp.concatenate([values, values[:, 1:-1]], axis=1),
        jnp.ones((B, 2 * H, N)).at[:, H + 1 :].set(0.0),
    )
    close(others[:, H + 1 :], old[:, 1:])  # other keys keep theirs


def test_beta_of_two_reflects_a_state():
    """I - 2 k k^T has the eigenvalue -1: the value that a key holds changes its sign."""
    k, (v,) = orthonormal()[:, :1], draw((B, 1, N, H))
    _, state = delta_net(k, k, v, jnp.ones((B, 1, N)), return_state=True)
    out = delta_net(k, k, 0 * v, jnp.full((B, 1, N), 2.0), state=state)
    close(out, -v)


def test_a_zero_key_writes_nothing_and_has_a_gradient():
    q, k, v = qkv()
    beta = jnp.ones((B, T, N))
    loss = lambda q, k: delta_net(q, k, v, beta).sum()
    grads = jax.grad(loss, argnums=(0, 1))(q.at[:, 2].set(0.0), k.at[:, 3].set(0.0))
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not np.any(delta_net(q, 0 * k, v, beta))


def test_the_gate_fades_before_the_correction():
    """With beta = 1 on one key the new value is read back, however much the state has faded."""
    q, _, v = qkv()
    k = jnp.broadcast_to(orthonormal()[:, :1], v.shape)
    log_decay = -jax.random.uniform(jax.random.key(3), (B, T, N))
    close(gated_delta_net(k, k, v, jnp.ones((B, T, N)), log_decay), v)


# --------------------------------------------------------------------------- lightning attention


def test_lightning_attention_is_the_same_for_every_block():
    """Blocks that divide T and that do not, one that holds all, and (Q K^T * M) V."""
    with jax.enable_x64():
        q, k, v = (jnp.asarray(x, jnp.float64) for x in qkv(13))
        log_decay = jnp.asarray(lightning_log_decays(N, 3, 12), jnp.float64)
        wanted = exact("lightning_attention", q=q, k=k, v=v, log_decay=log_decay)
        for impl in (*(Chunked(n) for n in (1, 3, 4, 13, 64)), "recurrent", "parallel"):
            close(lightning_attention(q, k, v, log_decay, impl=impl), wanted, 1e-12)


def test_the_blocks_of_lightning_attention_are_those_of_its_algorithm():
    """Intra: (Q K^T * M) V.  Inter: Lam Q S.  S <- lam^C S + (lam^C Lam^-1 K)^T V."""
    q, k, v = (np.asarray(x, np.float64) for x in qkv(12))
    lam, C = np.exp(np.asarray(lightning_log_decays(N, 2, 8), np.float64)), 4
    steps = np.arange(C)
    got = lightning_attention(q, k, v, jnp.log(lam), impl=Chunked(C))
    for b, n in np.ndindex(B, N):
        S = np.zeros((H, H))
        M = np.tril(lam[n] ** (steps[:, None] - steps))
        Lam = np.diag(lam[n] ** (steps + 1))
        for start in range(0, 12, C):
            Q, K, V = (x[b, start : start + C, n] for x in (q, k, v))
            out = (Q @ K.T * M) @ V + Lam @ Q @ S
            S = lam[n] ** C * S + (lam[n] ** C * np.linalg.inv(Lam) @ K).T @ V
            close(got[b, start : start + C, n], out, 2e-5)


def test_states_of_two_halves_add_up_to_that_of_the_whole():
    """What devices exchange: lam^T of the first state, plus the second's, which began at zero."""
    q, k, v = qkv(12)
    log_decay = lightning_log_decays(N, 2, 8)
    run = lambda part, **o: lightning_attention(
        q[:, part], k[:, part], v[:, part], log_decay, return_state=True, **o
    )
    first, second = slice(0, 7), slice(7, 12)
    whole, last = run(slice(None))
    _, a = run(first)
    _, b = run(second)
    memory = jnp.exp(5 * log_decay)[:, None, None] * a.memory + b.memory
    close(memory, last.memory)
    close(run(second, state=State(a.memory))[0], whole[:, second])


def test_lightning_decays_fall_with_heads_and_rise_with_layers():
    decays = np.exp([lightning_log_decays(8, layer, 12) for layer in range(13)])
    assert ((decays > 0) & (decays <= 1)).all()
    assert (np.diff(decays[:12], axis=1) < 0).all()  # later heads look less far
    assert (np.diff(decays[:, 1:], axis=0) > 0).all()  # later layers look farther
    close(decays[3, 5], math.exp(-(8 * 5 / 8) * (1 - 3 / 12)), 1e-6)


def test_the_gated_output_is_normed_over_all_heads():
    q, k, v = qkv()
    log_decay, ones = lightning_log_decays(N, 0, 4), jnp.ones_like(v)
    out = gated_lightning_attention(q, k, v, log_decay, ones)
    close(jnp.square(out).mean((2, 3)), jnp.ones((B, T)), 1e-4)
    (gate,) = draw(v.shape, seed=7)
    close(gated_lightning_attention(q, k, v, log_decay, gate), out * gate)
    close(gated_lightning_attention(q, k, 5.0 * v, log_decay, gate), out * gate, 1e-4)
    silent = gated_lightning_attention(q, k, 0 * v, log_decay, gate)
    assert not np.any(silent)


# ------------------------------------------------------------------------------- mamba-2, rwkv-6


def test_mamba2_heads_share_the_b_and_c_of_their_group():
    args = BY_NAME["mamba2"].sample(seed=2)
    groups = args["B"].shape[2]
    assert 1 < groups < args["x"].shape[2]
    each = {n: jnp.repeat(args[n], args["x"].shape[2] // groups, axis=2) for n in ("B", "C")}
    close(mamba2(**args), mamba2(**{**args, **each}))
    one = {n: args[n][:, :, :1] for n in ("B", "C")}
    same = {n: jnp.repeat(x, groups, axis=2) for n, x in one.items()}
    close(mamba2(**{**args, **one}), mamba2(**{**args, **same}))


def test_mamba2_without_a_skip_is_gated_linear_attention():
    args = BY_NAME["mamba2"].sample(seed=2, K=4)
    x, dt, A, b, c, D = (args[n] for n in ("x", "dt", "A", "B", "C", "D"))
    out = mamba2(x, dt, A, b, c)
    close(out, simple_gla(c, b, dt[..., None] * x, dt * A))
    close(mamba2(x, dt, A, b, c, D), out + D[:, None] * x)


def test_a_step_of_zero_leaves_the_state_of_mamba2():
    args = BY_NAME["mamba2"].sample(seed=2)
    _, before = mamba2(**args, return_state=True)
    still = {**args, "dt": 0 * args["dt"]}
    _, after = mamba2(**still, state=before, return_state=True)
    close(after.memory, before.memory)


def test_rwkv6_without_a_bonus_does_not_see_its_own_token():
    q, k, v = qkv()
    (log_decay,) = draw((B, T, N, H), seed=3)
    log_decay = -jnp.exp(log_decay)
    weights = weights_of(rwkv6, q, k, log_decay, jnp.zeros((N, H)))
    own = np.arange(T)
    assert not np.any(weights[:, :, own, own]) and np.any(weights[:, :, 1:, 0])
    (u,) = draw((N, H), seed=4)
    weights = weights_of(rwkv6, q, k, log_decay, u)
    close(weights[:, :, own, own], jnp.einsum("BTNH,NH,BTNH->BNT", q, u, k))


def test_rwkv6_reads_the_given_state_first():
    q, k, v = qkv(1)
    (memory,) = draw((B, N, H, H), seed=3)
    log_decay, u = jnp.full((B, 1, N, H), -jnp.inf), jnp.zeros((N, H))
    out, last = rwkv6(q, k, v, log_decay, u, state=State(memory), return_state=True)
    close(out[:, 0], jnp.einsum("BNH,BNHD->BND", q[:, 0], memory))
    close(last.memory, k[:, 0, :, :, None] * v[:, 0, :, None])


# ---------------------------------------------------------------------------------------- mLSTM


def test_mlstm_stays_finite_with_huge_input_gates():
    """Where exp(log_i) overflows the newest large gate decides: o -> v times the sign of q.k."""
    q, k, v = qkv()
    log_f = jnp.full((B, T, N), -0.1)
    square = lambda *args: (mlstm(*args) ** 2).sum()
    value_and_grad = jax.jit(jax.value_and_grad(square, argnums=tuple(range(5))))
    for size in (1e2, 1e4):
        (log_i,) = draw((B, T, N), seed=3)
        log_i = size * log_i
        value, grads = value_and_grad(q, k, v, log_i, log_f)
        assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)
    rising = 1e3 * jnp.arange(T)[None, :, None] * jnp.ones((B, T, N))
    sign = jnp.sign(jnp.einsum("BTNH,BTNH->BTN", q, k))[..., None]
    out = jax.jit(mlstm)
    close(out(q, k, v, rising, log_f)[:, 1:], (sign * v)[:, 1:], 1e-4)
    assert not np.any(out(q, k, v, -rising - 1e3, log_f))


def test_mlstm_forgets_its_stabilizer_where_gates_are_ordinary():
    """exp(-m) in the place of 1 makes the result that of the plain formula, not of m."""
    args = BY_NAME["mlstm"].sample(seed=2)
    close(mlstm(**args), exact("mlstm", **args), 2e-5)
    lower = {**args, "log_i": args["log_i"] - 20.0}  # every division is by 1
    close(mlstm(**lower) * math.exp(20), exact("mlstm", **lower) * math.exp(20), 2e-5)


# ---------------------------------------------------------------------------------------- ReGLA


def test_the_features_of_regla_reach_one_and_stay_positive():
    (x,) = draw((B, T, N, H))
    phi = safe_exp(30.0 * x)
    assert (phi.max(-1) == 1).all() and (phi >= 0).all() and (safe_exp(x) > 0).all()
    assert np.isfinite(safe_exp(1e30 * x)).all()


def test_an_undecided_refinement_leaves_the_gate():
    gate = jnp.linspace(-30.0, 30.0, 61)
    close(log_refined_gate(gate, 0 * gate), jax.nn.log_sigmoid(gate), 1e-6)


def test_the_refined_gate_is_that_of_the_paper_and_learns_where_a_sigmoid_does_not():
    gate = jnp.linspace(-6.0, 6.0, 13)
    g = jax.nn.sigmoid(gate)
    refined = lambda gate, refine: jnp.exp(log_refined_gate(gate, refine))
    for refine in (-2.0, 0.5, 3.0):
        r = jax.nn.sigmoid(refine)
        close(refined(gate, refine), (1 - r) * g**2 + r * (1 - (1 - g) ** 2), 1e-6)
    slope = jax.grad(refined)
    plain = jax.grad(jax.nn.sigmoid)
    for x, refine in ((-8.0, 3.0), (8.0, -3.0)):  # near 0, then near 1
        assert slope(x, refine) > 1.8 * plain(x)
    assert abs(slope(0.0, 0.0) - plain(0.0)) < 1e-6
    for x in (-200.0, 200.0):
        for refine in (-200.0, 200.0):
            assert np.isfinite(log_refined_gate(x, refine))
            assert np.isfinite(jax.grad(log_refined_gate, argnums=(0, 1))(x, refine)).all()


def test_the_output_of_regla_is_normed():
    args = BY_NAME["regla"].sample(seed=2)
    close(jnp.square(regla(**args)).mean(-1), jnp.ones((B, T, N)), 1e-4)
    close(regla(**{**args, "v": 7.0 * args["v"]}), regla(**args), 1e-4)
    assert not np.any(regla(**{**args, "v": 0 * args["v"]}))


# ----------------------------------------------------------------------------------- Cottention


@pytest.mark.parametrize("op", [cottention, cottention_full])
def test_cottention_ignores_the_lengths_of_queries_and_keys(op):
    q, k, v = qkv()
    m = jnp.linspace(-2.0, 2.0, N)
    longer = jax.random.uniform(jax.random.key(3), (B, T, N, 1), minval=0.1, maxval=9.0)
    close(op(longer * q, k / longer, v, m), op(q, k, v, m))
    assert np.isfinite(jax.grad(lambda q: op(q, k, v, m).sum())(0 * q)).all()


@pytest.mark.parametrize("op", [cottention, cottention_full])
def test_the_weights_of_cottention_are_cosines(op):
    q, k, _ = qkv()
    weights = weights_of(op, q, k, jnp.full(N, -100.0))  # a power of 0: no denominator
    assert (np.abs(weights) <= 1 + 1e-6).all() and (weights < 0).any()
    same = weights_of(op, q, q, jnp.full(N, -100.0))
    close(np.diagonal(same, axis1=2, axis2=3), np.ones((B, N, T)))
    learned = weights_of(op, q, k, jnp.zeros(N))
    seen = np.arange(1, T + 1)[:, None] if op is cottention else T
    close(learned, weights / np.sqrt(seen))


def test_the_state_of_cottention_counts_its_tokens_and_does_not_grow():
    q, k, v = qkv()
    m = jnp.zeros(N)
    sizes = set()
    state = None
    step = jax.jit(lambda *args, state: cottention(*args, m, state=state, return_state=True))
    for t in range(T):
        part = slice(t, t + 1)
        out, state = step(q[:, part], k[:, part], v[:, part], state=state)
        assert state.count == t + 1
        sizes.add(tuple(x.shape for x in jax.tree.leaves(state)))
    assert len(sizes) == 1
    close(out, cottention(q, k, v, m)[:, -1:])


def test_gla_reads_what_each_channel_has_left():
    """Two channels, one that keeps and one that forgets: only the first is read later on."""
    q = jnp.ones((1, 5, 1, 2))
    k, v = jnp.zeros_like(q).at[:, 0].set(1.0), jnp.ones((1, 5, 1, 1))
    log_decay = jnp.broadcast_to(jnp.array([0.0, -2.0]), (1, 5, 1, 2))
    close(gla(q, k, v, log_decay)[0, :, 0, 0], 1 + np.exp(-2.0 * np.arange(5)))
