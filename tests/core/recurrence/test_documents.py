"""Packed documents in engine 2: a row of them is what each gives by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from attnjax import Chunked, linear_attend, masks, normalizers
from attnjax.parallel import LASP2
from tests.core.recurrence.test_linear import B, D, H, K, N, draw, gates, truth
from tests.helpers import close

T = 24
IDS = np.array([[3] * 5 + [1] * 1 + [4] * 12 + [-1] * 2 + [0] * 4, [-1] * 2 + [7] * 9 + [2] * 13])
FORMS = {"recurrent": "recurrent", "chunked": Chunked(4), "16": Chunked(16), "parallel": "parallel"}


def inputs(decay, delta):
    q, k, v = draw((B, T, N, H), 0), draw((B, T, K, H), 1), draw((B, T, K, D), 2)
    decays, beta = gates(T)
    gate = {"log_decay": decays[decay], "beta": beta if delta else None}
    return (q, k / np.linalg.norm(k, axis=-1, keepdims=True), v), gate


def part(gate, row, at):
    """The gates of some tokens of a row."""
    cut = lambda x: x if x is None or x.ndim == 1 else x[row : row + 1, at]
    return {name: cut(x) for name, x in gate.items()}


def one_by_one(args, gate, start):
    """Each document by itself; the first of a row from `start`."""
    out, last = np.zeros((B, T, N, D)), np.array(start)
    for b in range(B):
        for number, at in enumerate(documents(IDS[b])):
            memory = start[b : b + 1] if number == 0 else None
            own = [x[b : b + 1, at] for x in args]
            out[b, at], last[b] = truth(*own, **part(gate, b, at), memory=memory)
    return out, last


def documents(ids):
    """The tokens of each document, in turn."""
    ends = np.flatnonzero(np.diff(ids)) + 1
    runs = np.split(np.arange(len(ids)), ends)
    return [run for run in runs if ids[run[0]] >= 0]


@pytest.mark.parametrize("decay", gates()[0])
@pytest.mark.parametrize("delta", [False, True], ids=["sums", "delta"])
def test_a_packed_row_is_its_documents_one_by_one(decay, delta):
    with jax.enable_x64():
        args, gate = inputs(decay, delta)
        start = draw((B, N, H, D), 5)
        want = one_by_one(args, gate, start)
        state = linear_attend(*args, **gate, return_state=True)[1]._replace(memory=start)
        for name, impl in FORMS.items():
            out, last = linear_attend(
                *args, **gate, documents=IDS, state=state, return_state=True, impl=impl
            )
            close((out, last.memory), want)
            assert list(last.document) == [0, 2], name


def loss(impl, ids, args, gate, weights):
    out, last = linear_attend(*args, **gate, documents=ids, return_state=True, impl=impl)
    return jnp.sum(jnp.sin(out) * weights) + jnp.sum(jnp.cos(last.memory))


@pytest.mark.parametrize("decay", [pytest.param("token", marks=pytest.mark.slow), "channel"])
@pytest.mark.parametrize(
    "delta", [pytest.param(False, marks=pytest.mark.slow), True], ids=["sums", "delta"]
)
def test_gradients_are_those_of_the_documents_one_by_one(decay, delta):
    with jax.enable_x64():
        args, gate = inputs(decay, delta)
        gate = {name: x for name, x in gate.items() if x is not None}
        weights = draw((B, T, N, D), 7)
        got = [
            jax.grad(functools.partial(loss, impl, IDS), argnums=(0, 1))(args, gate, weights)
            for impl in (None, "recurrent", Chunked(4))
        ]
        close(got[0], got[1])
        close(got[2], got[1])

        def separately(args, gate):
            total = 0.0
            for b in range(B):
                for at in documents(IDS[b]):
                    own = [x[b : b + 1, at] for x in args]
                    out, last = linear_attend(
                        *own, **part(gate, b, at), return_state=True, impl="recurrent"
                    )
                    total += jnp.sum(jnp.sin(out) * weights[b : b + 1, at])
                total += jnp.sum(jnp.cos(last.memory))
            return total

        close(got[1], jax.grad(separately, argnums=(0, 1))(args, gate))


def test_a_run_is_split_anywhere_and_may_end_with_its_document():
    with jax.enable_x64():
        args, gate = inputs("token", True)
        more = {**gate, "impl": Chunked(4)}
        whole = linear_attend(*args, **more, documents=IDS)
        for cut in (5, 8, 19):  # between documents, within one, in padding
            state, parts = None, []
            for at in (slice(cut), slice(cut, None)):
                own = {n: x[:, at] if n in gate else x for n, x in more.items()}
                out, state = linear_attend(
                    *(x[:, at] for x in args), **own, documents=IDS[:, at], state=state,
                    return_state=True,
                )  # fmt: skip
                parts.append(out)
            close(jnp.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("impl", FORMS.values(), ids=FORMS)
def test_a_nan_stays_in_its_document_and_one_in_padding_goes_nowhere(impl):
    args, gate = inputs("channel", True)
    q, k, v = (np.array(x) for x in args)
    k[0, 8] = v[1, 4] = np.nan
    for x in (q, k, v):
        x[0, 18:20] = x[1, :2] = np.inf  # padding
    bad = np.zeros((B, T), bool)
    bad[0, 8:18] = bad[1, 4:11] = True

    def good(k, v):
        out = linear_attend(q, k, v, **gate, documents=IDS, impl=impl)
        return jnp.where(bad[..., None, None], 0.0, out).sum(), out

    (_, out), grads = jax.value_and_grad(good, argnums=(0, 1), has_aux=True)(k, v)
    np.testing.assert_array_equal(np.isnan(out).all((2, 3)), bad)
    np.testing.assert_array_equal(np.isnan(out).any((2, 3)), bad)
    elsewhere = (IDS != 4) & (IDS != 7)
    for grad in grads:
        assert np.isfinite(np.asarray(grad)[elsewhere]).all()


def test_a_normalized_run_divides_within_documents():
    with jax.enable_x64():
        (q, k, v), _ = inputs("none", False)
        q, k = np.abs(q), np.abs(k)
        out = linear_attend(q, k, v, normalize=normalizers.divide, documents=IDS, impl=Chunked(4))
        for b in range(B):
            for at in documents(IDS[b]):
                own = (x[b : b + 1, at] for x in (q, k, v))
                close(out[b : b + 1, at], linear_attend(*own, normalize=normalizers.divide))


@pytest.mark.parametrize("layout", ["contiguous", "zigzag"])
def test_a_document_may_be_cut_at_the_edge_of_a_device(layout):
    mesh = jax.make_mesh((4,), ("sp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.enable_x64():
        args, gate = inputs("token", True)
        strategy = LASP2("sp", layout, chunk=4)
        order = strategy_order(layout)
        laid = lambda x: jnp.asarray(x)[:, order]

        def local(q, k, v, log_decay, beta, ids):
            return linear_attend(
                q, k, v, log_decay=log_decay, beta=beta, documents=ids, return_state=True,
                impl=strategy,
            )  # fmt: skip

        along = P(None, "sp")
        fn = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(along,) * 6, out_specs=(along, P())))
        out, last = fn(*map(laid, (*args, gate["log_decay"], gate["beta"], IDS)))
        want, state = linear_attend(*args, **gate, documents=IDS, return_state=True)
        close(out, laid(want))
        close(last.memory, state.memory)
        np.testing.assert_array_equal(last.document, state.document)


def strategy_order(layout):
    from attnjax.parallel.layouts import order

    return order(layout, 4, T)


def test_blocks_belong_to_documents_as_a_whole():
    with jax.enable_x64():
        args, gate = inputs("token", False)
        ids = np.array([[3, 1, 1, 4, 4, 4, -1, 0], [-1, 7, 7, 7, 2, 2, 2, 2]])
        want, last = np.zeros((B, T, N, D)), np.zeros((B, N, H, D))
        for b in range(B):
            for run in documents(ids[b]):
                at = np.concatenate([np.arange(3 * n, 3 * n + 3) for n in run])
                own = [x[b : b + 1, at] for x in args]
                want[b, at], last[b] = truth(*own, **part(gate, b, at), block=3)
        for impl in FORMS.values():
            out, state = linear_attend(
                *args, **gate, block=3, documents=ids, return_state=True, impl=impl
            )
            close(out, want)
            close(state.memory, last)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (
            {"documents": IDS[:, 1:]},
            ValueError,
            r"documents has shape \(2, 23\), expected \(T,\) or \(B,T\)",
        ),
        ({"documents": IDS * 1.0}, TypeError, "documents has dtype float"),
        ({"block": 2}, ValueError, r"shape \(2, 24\), expected \(T,\) or \(B,T\) = \(2, 12\)"),
        ({"block": 5}, ValueError, "block is 5 and T = 24 with documents, expected whole blocks"),
        ({"block": None}, ValueError, "block is None and T = 24 with documents"),
    ],
)
def test_bad_documents_are_told(change, error, told):
    args, _ = inputs("none", False)
    with pytest.raises(error, match=told):
        linear_attend(*args, **{"documents": IDS, **change})


def test_ids_are_read_off_the_offsets_of_flash_attention():
    ids = masks.document_ids([0, 3, 3, 7], 9)
    np.testing.assert_array_equal(ids, [0, 0, 0, 2, 2, 2, 2, -1, -1])
    np.testing.assert_array_equal(
        jax.jit(lambda x: masks.document_ids(x, 9))(np.array([0, 3, 3, 7])), ids
    )
    for bad, told in (
        ([1, 3], "0 .. at most 9"),
        ([0, 10], "at most 9"),
        ([0, 3, 2], "rise from 0"),
    ):
        with pytest.raises(ValueError, match=told):
            masks.document_ids(bad, 9)
    x = np.ones((2, 9, 1, 2), np.float32)
    got = linear_attend(x, x, x, documents=ids)
    np.testing.assert_array_equal(got[1, :, 0, 0], [2, 4, 6, 2, 4, 6, 8, 0, 0])


def test_a_state_of_documents_is_for_documents():
    args, _ = inputs("none", False)
    state = linear_attend(*args, documents=IDS, return_state=True)[1]
    with pytest.raises(ValueError, match="state is one of a call with documents"):
        linear_attend(*args, state=state)
