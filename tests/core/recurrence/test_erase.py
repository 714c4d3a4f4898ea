"""Engine 2 with vectors of its own to erase, and several writes a token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import Chunked, explain, linear_attend
from attnjax.core.recurrence.linear import State
from attnjax.parallel import LASP2, shard
from tests.core.recurrence.test_linear import B, D, H, K, N, draw, gates
from tests.helpers import close

FORMS = {"recurrent": "recurrent", "chunked": Chunked(4), "parallel": "parallel"}


def inputs(S, decay="channel", own=True, T=None):
    """q, k, v and the options: gates, r and, where it is its own, w."""
    q, k, v = draw((B, T or S, N, H), 0), draw((B, S, K, H), 1), draw((B, S, K, D), 2)
    r, w = draw((B, S, K, H), 3), draw((B, S, N, H), 4)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    erase = (unit(r), unit(w) if own else None)
    return (q, unit(k), v), {"log_decay": gates(S)[0][decay], "erase": erase}


def truth(q, k, v, log_decay, erase, memory=None, writes=1, block=1):
    """The recurrence in loops, and the last state."""
    (B, T, N, H), (S, _, D) = q.shape, v.shape[1:]
    of = lambda x, n: x[n * x.shape[0] // N]
    out = np.zeros((B, T, N, D))
    states = np.zeros((B, N, H, D)) if memory is None else np.array(memory)
    for b, n in np.ndindex(B, N):
        M, seen = states[b, n], []
        for t in range(S):
            key, read = of(k[b, t], n), of(erase[0][b, t], n)
            along = key if erase[1] is None else of(erase[1][b, t], n)
            lost = np.outer(along, read @ M)
            if log_decay is not None:
                M = np.exp(np.reshape(log_decay[b, t, n], (-1, 1))) * M
            M = M - lost + np.outer(key, of(v[b, t], n))
            seen.append(M)
        states[b, n] = M
        for t in range(T):
            last = S - 1 if block is None else (min(t // block * block + block, T)) * writes - 1
            out[b, t, n] = q[b, t, n] @ seen[last]
    return out, states


# ---------------------------------------------------------------------------------- the forms

CASES = {  # decay, whether w is its own, block, writes
    "none": ("none", True, None, 1),
    "token": ("token", True, 1, 3),
    "channel": ("channel", True, 3, 1),
    "channel, along k": ("channel", False, 1, 2),
}


@pytest.mark.parametrize(("decay", "own", "block", "writes"), CASES.values(), ids=CASES)
def test_every_form_is_the_recurrence(decay, own, block, writes):
    with jax.enable_x64():
        T = 11
        args, options = inputs(T * writes, decay, own, T=T)
        start = draw((B, N, H, D), 5)
        want = truth(*args, **options, memory=start, writes=writes, block=block)
        for impl in FORMS.values():
            call = functools.partial(
                linear_attend, block=block, writes=writes, return_state=True, impl=impl
            )
            out, state = jax.jit(call)(*args, **options, state=State(jnp.asarray(start)))
            close((out, state.memory), want)


@pytest.mark.parametrize(
    ("decay", "own", "writes"), [("channel", True, 1), ("token", False, 2)], ids=["own", "writes"]
)
def test_gradients_of_the_forms_agree_to_every_argument_and_the_state(decay, own, writes):
    with jax.enable_x64():
        args, options = inputs(38, decay, own, T=38 // writes)
        start = draw((B, N, H, D), 5)

        def loss(impl, args, options, start):
            out, last = linear_attend(
                *args, **options, writes=writes, state=State(start), return_state=True, impl=impl
            )
            return jnp.sum(jnp.sin(3 * out)) + jnp.sum(jnp.cos(last.memory))

        pulled = lambda impl: jax.jit(jax.grad(functools.partial(loss, impl), argnums=(0, 1, 2)))(
            *jax.tree.map(jnp.asarray, (args, options, start))
        )
        close(pulled(Chunked(32)), pulled("recurrent"))


def test_the_delta_rule_is_a_special_case():
    with jax.enable_x64():
        (q, k, v), _ = inputs(11)
        decays, beta = gates(11)
        fade = np.exp(decays["channel"])
        repeat = lambda x: np.repeat(x, N // K, axis=2)
        want = linear_attend(q, k, v, log_decay=decays["channel"], beta=beta, impl=Chunked(4))
        k, v, beta = repeat(k), repeat(v), beta[..., None]
        erase = (beta * fade * k, None)
        got = linear_attend(
            q, k, beta * v, log_decay=decays["channel"], erase=erase, impl=Chunked(4)
        )
        close(got, want)


# ------------------------------------------------------------------------------------ numerics


@pytest.mark.parametrize("impl", [Chunked(32), "recurrent"], ids=str)
def test_strong_decays_neither_overflow_nor_lose_what_they_keep(impl):
    args, options = inputs(32)
    pick = np.random.default_rng(0).random((B, 32, N, H))
    fades = np.select([pick < 0.2, pick < 0.4, pick < 0.5], [-30.0, -90.0, -np.inf], -0.01)
    r, w = options["erase"]
    args, fades, erase = jax.tree.map(np.float32, (args, fades, (0.5 * r, 0.5 * w)))

    def loss(fades, erase):
        out = linear_attend(*args, log_decay=fades, erase=erase, impl=impl)
        return jnp.sum(jnp.sin(out)), out

    pull = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, out), grads = jax.jit(pull)(fades, erase)
    exact = lambda tree: jax.tree.map(np.float64, tree)
    close(out, truth(*exact(args), exact(fades), exact(erase))[0], 2e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("impl", FORMS.values(), ids=FORMS)
def test_a_nan_to_erase_reaches_the_queries_that_read_after_it_and_no_other(impl):
    args, options = inputs(11)
    (r, w), bad = options["erase"], np.arange(11) >= 5
    r[0, 5, 0, 2] = w[1, 5, 3, 1] = np.nan

    def early(r, w):
        out = linear_attend(*args, log_decay=options["log_decay"], erase=(r, w), impl=impl)
        return jnp.sum(out[:, :5] ** 2), out

    (_, out), grads = jax.value_and_grad(early, argnums=(0, 1), has_aux=True)(r, w)
    spoiled = np.isnan(out)
    assert (spoiled[0, :, :2].all(-1) == bad[:, None]).all() and not spoiled[0, :, 2:].any()
    assert (spoiled[1, :, 3].all(-1) == bad).all() and not spoiled[1, :, :3].any()
    if impl != "recurrent":
        assert all(np.isfinite(x[:, :5]).all() for x in grads)


# ------------------------------------------------------------------------ documents and devices

IDS = np.array([[3] * 2 + [1] + [4] * 6 + [-1] + [0] * 2, [-1] + [7] * 4 + [2] * 7])


@pytest.mark.parametrize("impl", [*FORMS.values(), Chunked(16)], ids=[*FORMS, "16"])
def test_a_packed_row_is_its_documents_one_by_one(impl):
    """Each token writes twice; what is in padding, NaN, goes nowhere."""
    with jax.enable_x64():
        (q, k, v), options = inputs(24, T=12)
        log_decay, (r, w) = options["log_decay"], options["erase"]
        want, last = np.zeros((B, 12, N, D)), np.zeros((B, N, H, D))
        for b in range(B):
            for name in dict.fromkeys(IDS[b][IDS[b] >= 0]):
                at = np.flatnonzero(IDS[b] == name)
                sub = (2 * at[:, None] + [0, 1]).ravel()
                own = [x[b : b + 1, sub] for x in (k, v, log_decay)]
                erase = r[b : b + 1, sub], w[b : b + 1, sub]
                out, memory = truth(q[b : b + 1, at], *own, erase, writes=2)
                want[b, at], last[b] = out[0], memory[0]
        padding = np.repeat(IDS < 0, 2, axis=1)
        k[padding] = r[padding] = w[padding] = np.nan
        got, state = linear_attend(
            q, k, v, **options, writes=2, documents=IDS, return_state=True, impl=impl
        )
        close((got, state.memory), (want, last))


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_devices_hand_on_what_they_erase(layout):
    """With documents, and two writes a token, padded to what the devices share evenly."""
    mesh = jax.make_mesh((2,), ("sp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.enable_x64():
        args, options = inputs(22, "token", T=11)
        call = functools.partial(linear_attend, writes=2, documents=IDS[:, :11], return_state=True)
        spread = shard(call, mesh, LASP2("sp", layout, chunk=4))
        got, want = jax.jit(spread)(*args, **options), call(*args, **options, impl=Chunked(4))
        close((got[0], got[1].memory), (want[0], want[1].memory))


# ------------------------------------------------------------------------------------ messages


def test_explain_tells_what_erases():
    args, options = inputs(12, T=6)
    told = str(explain(linear_attend, *map(jnp.asarray, args), **options, writes=2))
    assert "decay of channels, erasing" in told
    assert "vectors of their own to erase: only the delta rule's" in told


BAD = {
    "erase and beta": ({"beta": np.ones((B, 8, N))}, ValueError, "beta and erase were given"),
    "erase is an array": (
        {"erase": np.ones((B, 8, K, H))},
        TypeError,
        r"erase is ndarray, expected a tuple \(r, w\)",
    ),
    "r is misshapen": (
        {"erase": (np.ones((B, 8, 3, H)), None)},
        ValueError,
        r"erase has r of shape \(2, 8, 3, 8\), expected \(B,S,K,H\) or \(B,S,N,H\) = \(2, 8",
    ),
    "w is of integers": (
        {"erase": (np.ones((B, 8, K, H)), np.ones((B, 8, K, H), int))},
        TypeError,
        "erase has w of dtype int",
    ),
    "writes is zero": ({"writes": 0}, ValueError, "writes is 0, expected an integer of at"),
    "writes does not fit": (
        {"writes": 3},
        ValueError,
        "T = 8 and S = 8 with block 1, expected S = 3 T",
    ),
    "writes does not fit, with documents": (
        {"writes": 2, "documents": np.zeros(8, int)},
        ValueError,
        "expected S = 2 T",
    ),
    "writes in both directions": (
        {"writes": 2, "block": None},
        ValueError,
        "writes is 2 with block None, expected 1",
    ),
}


@pytest.mark.parametrize(("change", "error", "told"), BAD.values(), ids=BAD)
def test_bad_values_are_told(change, error, told):
    args, options = inputs(8)
    with pytest.raises(error, match="linear_attend: .*" + told):
        linear_attend(*args, **{**options, **change})
