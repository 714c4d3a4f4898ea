"""Layouts hold every token once and give them back; balance counts what falls to each device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.core import masks
from attnjax.parallel.layouts import inverse, layout, order, order_of_documents, unlayout
from attnjax.parallel.model import balance as balances
from attnjax.parallel.model.balance import areas, imbalance, random_documents, row_counts, visited

NAMES = ("contiguous", "zigzag", "striped")
P = 4

# ------------------------------------------------------------------------------------ round trips


def tree(length=16):
    draw = np.random.default_rng(0).normal
    q, k = draw(size=(2, length, 3, 5)), jnp.asarray(draw(size=(1, length, 2)), jnp.float32)
    return {"q": q, "rest": [k, np.arange(length)[None]]}


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_orders_are_those_of_the_definitions():
    expected = {
        "contiguous": [0, 1, 2, 3, 4, 5, 6, 7],
        "zigzag": [0, 1, 6, 7, 2, 3, 4, 5],
        "striped": [0, 2, 4, 6, 1, 3, 5, 7],
    }
    for name, positions in expected.items():
        assert order(name, 2, 8).tolist() == positions
        assert inverse(order(name, 2, 8))[positions].tolist() == list(range(8))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_layout_holds_every_token_once_and_is_undone(name, devices):
    x = tree()
    laid = layout(x, devices, name)
    assert (laid.layout, laid.devices, laid.axis) == (name, devices, 1)
    assert laid.positions.dtype == np.int32
    assert sorted(laid.positions) == list(range(16))
    assert laid.positions.tolist() == order(name, devices, 16).tolist()
    np.testing.assert_array_equal(laid.values["rest"][1][0], laid.positions)
    np.testing.assert_array_equal(laid.values["q"], x["q"][:, laid.positions])
    assert_same(unlayout(laid), x)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_the_axis_is_the_callers(axis):
    x = np.moveaxis(np.random.default_rng(0).normal(size=(8, 2, 3)), 0, axis)
    laid = layout(x, 2, axis=axis)
    np.testing.assert_array_equal(laid.values, np.take(x, [0, 1, 6, 7, 2, 3, 4, 5], axis))
    np.testing.assert_array_equal(unlayout(laid), x)


def test_numpy_stays_numpy_and_jax_stays_jax():
    laid = layout(tree(), P)
    for values in (laid.values, unlayout(laid)):
        assert isinstance(values["q"], np.ndarray)
        assert isinstance(values["rest"][0], jax.Array)


@pytest.mark.parametrize("documents", [None, np.arange(16) // 6])
def test_traced_arrays_and_a_layout_that_crosses_jit(documents):
    x = jax.tree.map(jnp.asarray, tree())
    double = lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree)
    inside = jax.jit(lambda x: unlayout(layout(x, P, documents=documents)))(x)
    assert_same(inside, x)
    laid = jax.jit(lambda x: layout(x, P, documents=documents))(x)
    assert isinstance(laid.positions, jax.Array)
    assert laid.layout == ("zigzag" if documents is None else "given")
    through = jax.jit(lambda laid: laid.replace(values=double(laid.values)))(laid)
    assert_same(unlayout(through), double(x))
    assert_same(jax.jit(unlayout)(through), double(x))


def test_a_gradient_returns_to_the_order_of_the_text():
    x, weights = np.linspace(0.0, 1.0, 8, dtype=np.float32)[None], jnp.arange(8.0)
    loss = lambda x: (layout(x, 2).values * weights).sum()
    want = [0, 1, 4, 5, 6, 7, 2, 3]  # where each token stands in 0 1 6 7 2 3 4 5
    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(x))[0], want)


def test_other_values_of_the_same_layout_are_undone():
    laid = layout({"q": np.arange(16)[None]}, P)
    out = unlayout(laid.replace(values=(laid.values["q"] ** 2, np.ones((3, 16)))))
    assert out[0].tolist() == [(np.arange(16) ** 2).tolist()] and out[1].shape == (3, 16)


# ----------------------------------------------------------------------------------------- errors


def test_mistakes_are_told():
    x, twice = np.zeros((1, 16)), {"a": [layout(np.zeros((1, 16)), 8)]}
    wrong = {
        "already laid out as zigzag over 8 devices": lambda: layout(twice, 2, "striped"),
        r"already laid out as given over 2 ": lambda: layout(
            layout(x, 2, documents=np.zeros(16, int)), 2
        ),
        r"mismatched lengths along axis 1: x\['a'\] has 16, x\['b'\]\[0\] has 32": lambda: layout(
            {"a": x, "b": [np.zeros((1, 32))]}, 2
        ),
        "24 tokens for zigzag over 8 devices, expected a multiple of 16; pad to 32": lambda: layout(
            np.zeros((1, 24)), 8
        ),
        "17 tokens for striped over 8 devices, .* of 8; pad to 24": lambda: layout(
            np.zeros((1, 17)), 8, "striped"
        ),
        "17 tokens .* of 2; pad to 18": lambda: layout(
            np.zeros((1, 17)), 2, documents=np.zeros(17, int)
        ),
        r"x has shape \(16,\), expected an axis 1": lambda: layout(np.zeros(16), 2),
        "x has no arrays": lambda: layout([], 2),
        "layout is 'zagzig', expected one of": lambda: layout(x, 2, "zagzig"),
        "'given', which has no order": lambda: layout(x, 2, "given"),
        "devices is 0": lambda: layout(x, 0),
        "documents go with layout 'zigzag' alone, got 'striped'": lambda: layout(
            x, 2, "striped", documents=np.zeros(16, int)
        ),
        r"documents has shape \(8,\), expected \(16,\)": lambda: layout(
            x, 2, documents=np.zeros(8, int)
        ),
        r"documents has shape \(1, 16\), expected \(T,\)": lambda: layout(
            x, 2, documents=x.astype(int)
        ),
        "id 3 in 2 places": lambda: order_of_documents(np.array([3, 3, 5, 3]), 2),
        "values have 8 tokens along axis 1, expected the 16": lambda: unlayout(
            layout(x, 2).replace(values=np.zeros((1, 8)))
        ),
    }
    for told, call in wrong.items():
        with pytest.raises(ValueError, match=told):
            call()
    for told, call in {
        "documents has dtype float64": lambda: order_of_documents(np.zeros(16), 2),
        "documents is traced": lambda: jax.jit(lambda ids: layout(x, 2, documents=ids).values)(
            np.zeros(16, int)
        ),
        "got dict, expected the result of layout": lambda: unlayout({"a": x}),
    }.items():
        with pytest.raises(TypeError, match=told):
            call()


# -------------------------------------------------------------------------------- packed documents


def shares(documents, devices):
    """How many tokens each device holds of each document in turn, and each device's positions."""
    positions = order_of_documents(documents, devices).reshape(devices, -1)
    ids = [i for i in dict.fromkeys(documents.tolist()) if i >= 0]
    counts = [[(documents[row] == i).sum() for row in positions] for i in ids]
    return np.array(counts), positions


def test_one_document_is_the_plain_zigzag():
    for length in (16, 48):
        got = order_of_documents(np.full(length, 7), P)
        np.testing.assert_array_equal(got, order("zigzag", P, length))


def test_each_document_is_a_zigzag_of_its_own():
    ids = np.repeat([5, 2, 9], [16, 8, 24])
    _, positions = shares(ids, P)
    cut = lambda start, n, d: [*range(start + d * n, start + d * n + n)]
    for d, row in enumerate(positions.tolist()):
        chunks = [cut(start, n, c) for start, n in ((0, 2), (16, 1), (24, 3)) for c in (d, 7 - d)]
        assert row == sum(chunks, [])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_devices_share_every_document(seed, devices):
    draw = np.random.default_rng(seed)
    ids = np.repeat(draw.permutation(9), draw.integers(1, 60, 9))
    for at in draw.integers(0, len(ids), 2):  # padding, of any length, may break the text anywhere
        ids[ids == ids[at]] = -1 - at
    ids = np.concatenate([np.full(3, -9), ids, np.full(-(len(ids) + 3) % devices, -5)])
    counts, positions = shares(ids, devices)
    assert sorted(positions.reshape(-1)) == list(range(len(ids)))
    assert (np.diff(positions, axis=1) > 0).all()  # in order of position
    assert (counts.max(1) - counts.min(1) <= 3).all()
    assert np.ptp(counts.cumsum(0), axis=1).max() <= 1  # the running totals, document by document


def test_short_documents_do_not_pile_up_on_a_device():
    ids = np.repeat(np.arange(200), 8)  # a token each: the last of each document must go around
    _, positions = shares(ids, 8)
    assert imbalance(areas(masks.causal & masks.document(ids), positions, len(ids))) < 1.02


def test_documents_travel_with_arrays():
    ids = np.repeat([4, 1, -1], [7, 6, 3])
    x = np.arange(16)[None]
    laid = layout({"x": x}, P, documents=ids)
    assert (laid.layout, laid.devices) == ("given", P)
    np.testing.assert_array_equal(laid.positions, order_of_documents(ids, P))
    np.testing.assert_array_equal(laid.values["x"][0], laid.positions)
    assert_same(unlayout(laid), {"x": x})


# ------------------------------------------------------------------------------------------ areas

T = 48
IDS = np.repeat([0, 1, 2, -1], [13, 20, 10, 5])
SPOTS = np.random.default_rng(1).random((T, T)) < 0.3
MASKS = {
    "causal": masks.causal,
    "window": masks.causal & masks.window(7),
    "ahead": masks.window(3, 5),
    "documents": masks.causal & masks.document(IDS),
    "not": ~(masks.window(4) | masks.sinks(2)),
    "dilated": masks.dilated(3, 4),
    "array": masks.array(SPOTS) & masks.window(20, None),
    "full": masks.window(None, None),
    "by example": masks.lengths(k=[30, 48]) | masks.sinks(1),
    "by example and head": masks.lengths(k=[30, 48]) & masks.array(np.stack([SPOTS, ~SPOTS])[None]),
}
EXACT = ("causal", "window", "ahead", "documents", "not", "dilated", "full")
GIVEN = np.random.default_rng(2).permutation(T).astype(np.int32)


@pytest.fixture(params=[8, 512])
def small_tiles(request, monkeypatch):
    monkeypatch.setattr(balances, "_TILE", request.param)


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_areas_are_those_of_the_dense_mask(mask, small_tiles):
    dense = np.asarray(mask.dense(T, T)).reshape(-1, T, T)
    counts = row_counts(mask, T, T)
    assert counts.dtype == np.int64 and counts.tolist() == dense.sum((0, 2)).tolist()
    for positions in (*(order(name, P, T) for name in NAMES), GIVEN):
        positions = positions.reshape(P, -1)
        want = [dense[:, row].sum() for row in positions]
        assert areas(mask, positions, T).tolist() == want


def test_areas_where_keys_and_queries_differ_in_number(small_tiles):
    for S in (21, 50):
        for mask in (masks.causal, masks.causal_to_end, masks.window(None, 9), masks.prefix(4)):
            dense = np.asarray(mask.dense(32, S))
            positions = order("zigzag", P, 32).reshape(P, -1)
            want = [dense[row].sum() for row in positions]
            assert areas(mask, positions, S).tolist() == want, (mask, S)


def brute_visited(dense, positions, block_q, block_k):
    """A tile is visited if a pair between its extreme positions is allowed, whatever lies in it."""
    split = lambda block: [
        [row[i : i + block] for i in range(0, len(row), block)] for row in positions
    ]
    area = np.zeros(len(positions), int)
    for d, blocks in enumerate(split(block_q)):
        for q in blocks:
            for k in sum(split(block_k), []):
                box = dense[:, q.min() : q.max() + 1, k.min() : k.max() + 1]
                area[d] += box.any() * len(q) * len(k)
    return area


@pytest.mark.parametrize("name", EXACT)
def test_visited_tiles_are_those_with_a_pair_in_their_span(name):
    mask = MASKS[name]
    dense = np.asarray(mask.dense(T, T)).reshape(-1, T, T)
    for positions in (*(order(name, P, T) for name in NAMES), GIVEN):
        positions = positions.reshape(P, -1)
        for blocks in ((4, 6), (5, 7), (100, 1)):  # 5 and 7 do not divide a device's 12
            want = brute_visited(dense, positions, *blocks)
            assert visited(mask, positions, *blocks).tolist() == want.tolist()


@pytest.mark.parametrize("name", sorted(set(MASKS) - set(EXACT)))
def test_no_tile_with_a_pair_is_left_out(name):  # a mask may judge a combination conservatively
    dense = np.asarray(MASKS[name].dense(T, T)).reshape(-1, T, T)
    positions = order("zigzag", P, T).reshape(P, -1)
    got, least = visited(MASKS[name], positions, 4, 6), brute_visited(dense, positions, 4, 6)
    assert (got >= least).all() and (got <= T * T // P).all()


def test_positions_that_are_no_layout_are_told():
    for count in (
        lambda positions: areas(masks.causal, positions, 8),
        lambda positions: visited(masks.causal, positions, 2, 2),
    ):
        with pytest.raises(ValueError, match=r"positions has shape \(8,\), expected \(devices"):
            count(np.arange(8))
        with pytest.raises(ValueError, match="not each of 0 .. 7 once"):
            count(np.arange(8).reshape(2, 4) // 2)
        with pytest.raises(TypeError, match="dtype float64"):
            count(np.arange(8.0).reshape(2, 4))
    with pytest.raises(ValueError, match="block_k is 0"):
        visited(masks.causal, np.arange(8).reshape(2, 4), 2, 0)


def test_imbalance_is_the_largest_over_the_mean():
    assert imbalance(np.array([1, 1, 4, 2])) == 2 and imbalance(np.array([0, 0, 6])) == 3


# -------------------------------------------------------------------------------------- acceptance

LONG = 65536


@pytest.fixture(scope="module")
def parts():
    return {name: order(name, 8, LONG).reshape(8, -1) for name in NAMES}


def test_contiguous_chunks_of_a_causal_mask_are_uneven_and_the_others_even(parts):
    # The last of P devices has L = T/P queries that see T - L + 1 .. T keys, L (2T - L + 1) / 2
    # pairs; the mean is T (T + 1) / 2P.
    area = {name: areas(masks.causal, positions, LONG) for name, positions in parts.items()}
    assert all(x.sum() == LONG * (LONG + 1) // 2 for x in area.values())
    want = (2 * LONG - LONG // 8 + 1) / (LONG + 1)
    assert imbalance(area["contiguous"]) == pytest.approx(want, rel=1e-12)
    assert want == pytest.approx(15 / 8, rel=1e-5)
    assert imbalance(area["zigzag"]) == 1
    # the last query of each stripe of P sees (P - 1) / 2 keys more than the mean
    assert imbalance(area["striped"]) == pytest.approx(1 + 7 / (LONG + 1), rel=1e-12)


def test_zigzag_is_even_under_a_causal_window(parts):
    assert imbalance(areas(masks.causal & masks.window(256), parts["zigzag"], LONG)) <= 1.02


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("documents", [5, 16, 200])
def test_zigzag_by_documents_is_even_under_causal_documents(parts, seed, documents):
    ids = random_documents(LONG, documents, seed)
    assert len(np.unique(ids)) == documents and (np.diff(ids) >= 0).all()
    counts = row_counts(masks.causal & masks.document(ids), LONG, LONG)
    place = np.arange(LONG) - np.searchsorted(
        ids, ids
    )  # in its document: what a query sees, less 1
    assert (counts == place + 1).all()
    by_document = order_of_documents(ids, 8).reshape(8, -1)
    assert imbalance(counts[by_document].sum(1)) <= 1.002
    assert imbalance(counts[parts["zigzag"]].sum(1)) > 1.05  # what the layout is there for


# ------------------------------------------------------------------------------------ command line


def test_the_table_tells_area_and_tiles(capsys):
    balances.balance(length=1024, devices=4, window=32, documents=3, block_q=16, block_k=16)
    out, err = capsys.readouterr()
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert (
        set(rows) == {"causal", "causal & window(32)", "causal & 3 documents", "full"} and not err
    )
    causal = areas(masks.causal, order("contiguous", 4, 1024).reshape(4, -1), 1024)
    tiles = visited(masks.causal, order("contiguous", 4, 1024).reshape(4, -1), 16, 16)
    first = f"{imbalance(causal):.3f}, {imbalance(tiles):.3f}  x{tiles.sum() / causal.sum():.2f}"
    assert first == rows["causal"].split("│")[2].strip()
    assert rows["full"].count("1.000, 1.000  x1.00") == 3
    assert rows["causal & 3 documents"].split("│")[3].strip().startswith("1.00")
    assert out.splitlines()[-1].startswith("1024 tokens over 4 devices, the worst max / mean")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"length": 1000}, "length is 1000, expected a multiple of 2 . devices = 16, as 1008 is"),
        ({"devices": 0}, "devices is 0, expected an integer from 1 on"),
        ({"documents": 20, "length": 16}, "documents is 20, expected at most length = 16"),
        ({"window": -1}, "window is -1, expected an integer from 0 on"),
        ({"block_q": 0}, "block_q is 0, expected"),
    ],
)
def test_wrong_numbers_are_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        balances.balance(**wrong)
