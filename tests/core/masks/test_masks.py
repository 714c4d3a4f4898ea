"""Masks against plain loops written from their definitions, and tiles against brute force."""

import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.core import masks
from attnjax.core.masks import EMPTY, FULL, PARTIAL

settings.register_profile("masks", max_examples=60, deadline=None, derandomize=True)
often = settings(settings.get_profile("masks"), max_examples=150)
usual = settings(settings.get_profile("masks"))

B, N = 2, 3  # examples and heads of the masks that vary by them


# ---------------------------------------------------------------- the oracle


def table(rule, T, S):
    return np.array([[bool(rule(q, k)) for k in range(S)] for q in range(T)])


def near(i, j, extent, window, stride, dilation, causal):
    """One axis of a neighborhood: the leader, then the run of members centered nearest to it."""
    members = [x for x in range(extent) if x % dilation == i % dilation]
    if j not in members:
        return False
    place = members.index(i)
    group = [p for p in range(len(members)) if p // stride == place // stride]
    if causal:
        return j <= i and j in members[max(0, group[-1] + 1 - window) : group[-1] + 1]
    # A last group may be cut short by the border: its leader is then the border at most.
    leader = min(group[0] + stride // 2, len(members) - 1)
    starts = range(len(members) - window + 1)
    start = min(starts, key=lambda a: abs(a + window // 2 - leader))
    return j in members[start : start + window]


def neighbors(shape, *per_axis):
    """Dense neighborhood by loops over all pairs of grid points; per_axis as in the factory."""
    points = list(itertools.product(*map(range, shape)))
    axes = list(zip(shape, *per_axis, strict=True))
    return np.array(
        [
            [all(near(i, j, *axis) for i, j, axis in zip(p, r, axes, strict=True)) for r in points]
            for p in points
        ]
    )


def brute(truth, block_q, block_k):
    """The verdict on each tile, read off the dense mask."""
    T, S = truth.shape[-2:]
    rows = []
    for q in range(0, T, block_q):
        tiles = (truth[..., q : q + block_q, k : k + block_k] for k in range(0, S, block_k))
        rows.append([int(tile.any()) + int(tile.all()) for tile in tiles])
    return np.array(rows, np.int8)


def intervals(size):
    """Ends of all intervals of positions, and which positions each holds."""
    lo, hi = np.triu_indices(size)
    return lo, hi, ((lo[:, None] <= np.arange(size)) & (np.arange(size) <= hi[:, None])).astype(int)


def assert_exact_on_all_rectangles(mask, truth):
    """Compares `classify` with counts of what is allowed, for every rectangle there is."""
    (q_lo, q_hi, q), (k_lo, k_hi, k) = map(intervals, truth.shape)
    allowed, area = q @ truth @ k.T, np.outer(q.sum(1), k.sum(1))
    verdict = mask.classify(q_lo[:, None], q_hi[:, None], k_lo[None], k_hi[None])
    expected = (allowed > 0).astype(int) + (allowed == area)
    np.testing.assert_array_equal(verdict, expected, err_msg=repr(mask))


def assert_sound(tiles, truth):
    """PARTIAL is always allowed; EMPTY and FULL only where they are true."""
    assert tiles.dtype == np.int8 and tiles.shape == truth.shape
    wrong = (tiles != truth) & (tiles != PARTIAL)
    assert not wrong.any(), (tiles, truth)


# ---------------------------------------------------------------- drawing masks with their truth


sizes = st.integers(1, 12)
blocks = st.integers(1, 6)


@st.composite
def booleans(draw, *shape):
    flat = draw(st.lists(st.booleans(), min_size=(n := int(np.prod(shape))), max_size=n))
    return np.array(flat, bool).reshape(shape)


@st.composite
def ids(draw, size, *, sorted_):
    values = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    if not sorted_:
        return np.array([v - 1 for v in values])
    padding = draw(st.integers(0, size))
    return np.array(sorted(values)[: size - padding] + [-1] * padding)


@st.composite
def axes(draw, rank):
    rows = []
    for _ in range(rank):
        extent = draw(st.integers(1, {1: 14, 2: 5, 3: 3}[rank]))
        dilation = draw(st.integers(1, min(extent, 4)))
        window = draw(st.integers(1, extent // dilation))
        rows.append((extent, window, draw(st.integers(1, window)), dilation, draw(st.booleans())))
    return tuple(zip(*rows, strict=True))


@st.composite
def atoms(draw, T, S):
    """A mask without a combination, and its dense truth."""
    small = st.integers(0, 12)
    kind = draw(st.sampled_from(KINDS))
    if kind == "causal":
        return masks.causal, table(lambda q, k: k <= q, T, S)
    if kind == "causal_to_end":
        return masks.causal_to_end, table(lambda q, k: k - (S - 1) <= q - (T - 1), T, S)
    if kind == "window":
        left, right = draw(st.none() | small), draw(st.none() | small)
        seen = lambda q, k: (left is None or q - k <= left) and (right is None or k - q <= right)
        return masks.window(left, right), table(seen, T, S)
    if kind == "sinks":
        n = draw(small)
        return masks.sinks(n), table(lambda q, k: k < n, T, S)
    if kind == "prefix":
        n = draw(small)
        return masks.prefix(n), table(lambda q, k: k < n, T, S)
    if kind == "prefixes":
        ns = draw(st.lists(small, min_size=B, max_size=B))
        return masks.prefix(ns), np.array([[table(lambda q, k: k < n, T, S)] for n in ns])  # noqa: B023
    if kind == "dilated":
        w, g = draw(st.integers(0, 4)), draw(st.integers(1, 5))
        steps = {g * i for i in range(-w, w + 1)}
        return masks.dilated(w, g), table(lambda q, k: q - k in steps, T, S)
    if kind == "document":
        q = [draw(ids(T, sorted_=True)) for _ in range(B)]
        k = [draw(ids(S, sorted_=True)) for _ in range(B)]
        same = lambda a, b: table(lambda i, j: a[i] == b[j] and a[i] >= 0, T, S)
        if draw(st.booleans()):
            return masks.document(q[0], k[0]), same(q[0], k[0])
        pairs = zip(q, k, strict=True)
        return masks.document(q, k), np.array([[same(*pair)] for pair in pairs])
    if kind == "lengths":
        q, k = (draw(st.lists(small, min_size=B, max_size=B)) for _ in range(2))
        below = lambda a, b: table(lambda i, j: i < a and j < b, T, S)
        pairs = zip(q, k, strict=True)
        return masks.lengths(q, k), np.array([[below(*pair)] for pair in pairs])
    if kind == "block_layout":
        bq, bk = draw(blocks), draw(blocks)
        layout = draw(booleans(N, -(-T // bq), -(-S // bk)))
        spread = lambda x: table(lambda i, j: x[i // bq, j // bk], T, S)
        if draw(st.booleans()):
            return masks.block_layout(layout[0], bq, bk), spread(layout[0])
        return masks.block_layout(layout, bq, bk), np.array([[spread(x) for x in layout]])
    shape = draw(st.sampled_from([(T, S), (B, 1, T, S), (1, N, T, S), (T, 1), (1, 1, 1, S)]))
    mask = draw(booleans(*shape))
    return masks.array(mask), np.broadcast_to(mask, shape[:-2] + (T, S))


KINDS = (
    "causal", "causal_to_end", "window", "sinks", "prefix", "prefixes", "dilated", "document",
    "lengths", "block_layout", "array",
)  # fmt: skip


def combinations(T, S):
    def deeper(inner):
        both = st.tuples(inner, inner)
        return (
            both.map(lambda p: (p[0][0] & p[1][0], p[0][1] & p[1][1]))
            | both.map(lambda p: (p[0][0] | p[1][0], p[0][1] | p[1][1]))
            | inner.map(lambda p: (~p[0], ~p[1]))
        )

    return st.recursive(atoms(T, S), deeper, max_leaves=4)


# ---------------------------------------------------------------- dense and tiles


@often
@given(st.data(), sizes, sizes, blocks, blocks)
def test_atoms_are_exact(data, T, S, block_q, block_k):
    mask, truth = data.draw(atoms(T, S))
    np.testing.assert_array_equal(mask.dense(T, S), truth)
    for m, t in ((mask, truth), (~mask, ~truth)):
        np.testing.assert_array_equal(m.tiles(T, S, block_q, block_k), brute(t, block_q, block_k))


@often
@given(st.data(), sizes, sizes, blocks, blocks)
def test_combinations_are_sound(data, T, S, block_q, block_k):
    mask, truth = data.draw(combinations(T, S))
    np.testing.assert_array_equal(mask.dense(T, S), truth)
    assert_sound(mask.tiles(T, S, block_q, block_k), brute(truth, block_q, block_k))


@usual
@given(st.data(), sizes, sizes, blocks, blocks)
def test_causal_with_window_sinks_or_prefix_is_exact(data, T, S, block_q, block_k):
    n, left, right = (data.draw(st.integers(0, 12)) for _ in range(3))
    other = data.draw(st.sampled_from([masks.window(left, right), masks.sinks(n), masks.prefix(n)]))
    mask = masks.causal & other
    truth = brute(mask.dense(T, S), block_q, block_k)
    np.testing.assert_array_equal(mask.tiles(T, S, block_q, block_k), truth)


@usual
@given(st.data(), sizes, sizes, blocks, blocks)
def test_full_is_found_in_every_intersection(data, T, S, block_q, block_k):
    (a, x), (b, y) = data.draw(st.tuples(atoms(T, S), atoms(T, S)))
    tiles = (a & b).tiles(T, S, block_q, block_k)
    np.testing.assert_array_equal(tiles == FULL, brute(x & y, block_q, block_k) == FULL)


@usual
@given(st.data(), sizes, sizes, blocks, blocks)
def test_scattered_documents_are_sound(data, T, S, block_q, block_k):
    q, k = data.draw(ids(T, sorted_=False)), data.draw(ids(S, sorted_=False))
    truth = table(lambda i, j: q[i] == k[j] and q[i] >= 0, T, S)
    mask = masks.document(q, k)
    np.testing.assert_array_equal(mask.dense(T, S), truth)
    assert_sound(mask.tiles(T, S, block_q, block_k), brute(truth, block_q, block_k))


def test_dilated_is_exact_on_all_rectangles():
    for window, dilation in itertools.product(range(4), range(1, 5)):
        mask = masks.dilated(window, dilation)
        assert_exact_on_all_rectangles(mask, mask.dense(9, 7))


def test_sorted_documents_are_exact_on_all_rectangles():
    choices = itertools.combinations_with_replacement
    for q_ids, k_ids in itertools.product(choices(range(4), 4), choices(range(4), 3)):
        for padding in (0, 1):
            q, k = np.array(q_ids), np.array(k_ids)
            q[4 - padding :], k[3 - padding :] = -1, -1
            truth = (q[:, None] == k) & (k >= 0)
            assert_exact_on_all_rectangles(masks.document(q, k), truth)


def test_documents_packed_in_any_order_of_ids_are_exact():
    ids = np.array([70, 70, 3, 3, 3, 3, 12, 12, 12, 5, 5, 5, -1, -1, -1, -1])
    mask = masks.document(ids)
    for block in (1, 2, 3, 4, 5):
        truth = brute(mask.dense(16, 16), block, block)
        np.testing.assert_array_equal(mask.tiles(16, 16, block, block), truth)


@usual
@given(st.data(), sizes, sizes, blocks, blocks)
def test_permuted_positions_are_sound(data, T, S, block_q, block_k):
    mask, truth = data.draw(combinations(T, S))
    q_positions = np.array(data.draw(st.permutations(range(T))))
    k_positions = np.array(data.draw(st.permutations(range(S))))
    tiles = mask.tiles(T, S, block_q, block_k, q_positions, k_positions)
    seen = truth[..., q_positions, :][..., k_positions]
    assert_sound(tiles, brute(seen, block_q, block_k))


def test_explicit_positions_in_order_change_nothing():
    mask, positions = masks.causal & masks.window(5), np.arange(17)
    expected = mask.tiles(17, 17, 4, 3)
    np.testing.assert_array_equal(mask.tiles(17, 17, 4, 3, positions, positions), expected)
    assert {EMPTY, PARTIAL, FULL} == set(expected.flat)


def test_a_tile_is_empty_or_full_only_if_all_examples_agree():
    tiles = masks.lengths(k=[2, 6]).tiles(4, 8, 4, 2)
    np.testing.assert_array_equal(tiles, [[FULL, PARTIAL, PARTIAL, EMPTY]])


def test_a_million_tokens_stay_small():
    T, block = 2**20, 512
    mask = masks.causal & masks.window(8 * block)
    tracemalloc.start()
    tiles = mask.tiles(T, T, block, block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6
    back = np.arange(T // block)[:, None] - np.arange(T // block)
    inside, border = (0 < back) & (back < 8), (back == 0) | (back == 8)
    expected = np.where(border, PARTIAL, np.where(inside, FULL, EMPTY))
    np.testing.assert_array_equal(tiles, expected)


# ---------------------------------------------------------------- neighborhoods


@often
@given(st.data(), st.integers(1, 3), blocks, blocks)
def test_neighborhoods_are_exact(data, rank, block_q, block_k):
    spec = data.draw(axes(rank))
    truth, mask = neighbors(*spec), masks.neighborhood(*spec)
    size = len(truth)
    np.testing.assert_array_equal(mask.dense(size, size), truth)
    tiles = mask.tiles(size, size, block_q, block_k)
    np.testing.assert_array_equal(tiles, brute(truth, block_q, block_k))


@pytest.mark.parametrize("extent", [1, 5, 8, 11])
def test_every_axis_is_exact_on_all_rectangles(extent):
    for dilation in range(1, extent + 1):
        for window in range(1, extent // dilation + 1):
            for stride, causal in itertools.product({1, 2, window // 2 + 1, window}, (False, True)):
                if stride <= window:
                    mask = masks.neighborhood(extent, window, stride, dilation, causal)
                    assert_exact_on_all_rectangles(mask, mask.dense(extent, extent))


@usual
@given(axes(2) | axes(3))
def test_grids_are_exact_on_all_rectangles(spec):
    mask, size = masks.neighborhood(*spec), int(np.prod(spec[0]))
    assert_exact_on_all_rectangles(mask, mask.dense(size, size))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_query_has_as_many_keys_as_the_window(stride, dilation):
    dense = masks.neighborhood((6, 7), 3, stride, dilation).dense(42, 42)
    np.testing.assert_array_equal(dense.sum(-1), 9)


def test_window_over_the_whole_grid_is_full():
    assert masks.neighborhood((3, 4, 2), (3, 4, 2)).dense(24, 24).all()
    assert (masks.neighborhood((3, 4, 2), (3, 4, 2)).tiles(24, 24, 5, 7) == FULL).all()


def test_window_of_one_is_the_identity():
    np.testing.assert_array_equal(masks.neighborhood((3, 4), 1).dense(12, 12), np.eye(12))


def test_dilation_is_attention_on_interleaved_grids():
    dense = masks.neighborhood((8, 6), 3, dilation=(2, 2)).dense(48, 48).reshape(8, 6, 8, 6)
    sub = masks.neighborhood((4, 3), 3).dense(12, 12).reshape(4, 3, 4, 3)
    for a, b, c, d in itertools.product(range(2), repeat=4):
        part = dense[a::2, b::2, c::2, d::2]
        np.testing.assert_array_equal(part, sub if (a, b) == (c, d) else False & sub)


def test_stride_of_the_window_is_attention_in_blocks():
    dense = masks.neighborhood(12, 4, stride=4).dense(12, 12)
    np.testing.assert_array_equal(dense, np.kron(np.eye(3), np.ones((4, 4))))


def test_a_group_shares_its_keys_and_groups_differ():
    dense = masks.neighborhood(12, 5, stride=2).dense(12, 12)
    np.testing.assert_array_equal(dense[::2], dense[1::2])
    starts = dense[::2].argmax(-1)  # leaders 1, 3 .. 11 less 2, shifted in at both ends
    np.testing.assert_array_equal(starts, [0, 1, 3, 5, 7, 7])


def test_causal_axis_ends_at_the_query():
    dense = masks.neighborhood(7, 3, causal=True).dense(7, 7)
    np.testing.assert_array_equal(dense, (masks.causal & masks.window(2)).dense(7, 7))
    strided = masks.neighborhood(9, 3, stride=3, causal=True).dense(9, 9)
    np.testing.assert_array_equal(strided, np.kron(np.eye(3), np.tri(3)))


def test_interior_is_equivariant_to_translation():
    dense = masks.neighborhood(20, 5).dense(20, 20)
    for q in range(2, 17):
        np.testing.assert_array_equal(dense[q + 1, 1:], dense[q, :-1])


# ---------------------------------------------------------------- traced arrays, pytrees

rng = np.random.default_rng(0)
ASSORTED = {
    "causal": masks.causal,
    "causal_to_end": masks.causal_to_end,
    "window": masks.window(3, 1),
    "sinks": masks.sinks(2),
    "prefix": masks.prefix([2, 5]),
    "dilated": masks.dilated(2, 3),
    "document": masks.document(np.repeat([0, 1, 4, -1], 3)),
    "documents": masks.document([sorted(rng.integers(0, 4, 12)) for _ in range(B)]),
    "shuffled": masks.document(rng.integers(-1, 3, (B, 12))),
    "lengths": masks.lengths(q=[3, 12], k=[12, 7]),
    "neighborhood": masks.neighborhood((4, 3), (2, 1), 1, (2, 3), (True, False)),
    "layout": masks.block_layout(rng.integers(0, 2, (N, 3, 4)) > 0, 4, 3),
    "array": masks.array(rng.integers(0, 2, (B, N, 12, 12)) > 0),
    "row": masks.array(rng.integers(0, 2, (12, 1)) > 0),
    "mixed": masks.causal & (masks.lengths(k=[4, 9]) | ~masks.sinks(1)) & masks.window(6),
}


@pytest.mark.parametrize("name", ASSORTED)
def test_traced_equals_concrete(name):
    mask, positions = ASSORTED[name], np.random.default_rng(1).permutation(12).astype(np.int32)

    def run(mask, q_positions):
        resolved = mask.resolve(12, 12)
        return (
            mask.dense(12, 12),
            mask.tiles(12, 12, 5, 4),
            mask.tiles(12, 12, 5, 4, q_positions),
            resolved.allowed(q_positions[:, None], jnp.arange(12)[None]),
        )

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        traced = jax.jit(run)(mask, positions)
    dense, tiles, permuted = (
        mask.dense(12, 12), mask.tiles(12, 12, 5, 4), mask.tiles(12, 12, 5, 4, positions)
    )  # fmt: skip
    assert all(isinstance(x, np.ndarray) for x in (dense, tiles, permuted))
    for got, expected in zip(traced[:3], (dense, tiles, permuted), strict=True):
        np.testing.assert_array_equal(got, expected)
    shape = dense.shape[:-2] + (12, 12)
    np.testing.assert_array_equal(jnp.broadcast_to(traced[3], shape), dense[..., positions, :])


def test_makers_accept_traced_arrays():
    @jax.jit
    def tiles(ids, n, layout):
        mask = masks.document(ids) & masks.lengths(k=n) & masks.block_layout(layout, 4, 4)
        return mask.tiles(8, 8, 2, 2)

    ids, n = np.repeat([0, 1, 2, 3], 2), np.array([8, 6])
    layout = np.array([[1, 1], [0, 1]], bool)
    expected = masks.document(ids) & masks.lengths(k=n) & masks.block_layout(layout, 4, 4)
    np.testing.assert_array_equal(tiles(ids, n, layout), expected.tiles(8, 8, 2, 2))


def test_makers_keep_concrete_arrays_on_the_host():
    mask = masks.document(jnp.array([0, 0, 1])) & masks.array(jnp.ones((3, 3), bool))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(mask))
    assert isinstance(mask.tiles(3, 3, 2, 2), np.ndarray)


def test_static_masks_are_values():
    mask = masks.causal & masks.window(4)
    assert mask == masks.causal & masks.window(4) != masks.causal & masks.window(5)
    assert hash(mask) == hash(masks.causal & masks.window(4))
    assert masks.causal == masks.window(None, 0)
    assert not jax.tree.leaves(mask | masks.neighborhood((2, 2), 2) | masks.prefix(3))


def test_positions_beyond_the_arrays_do_not_fail():
    mask = masks.document([0, 1]) & masks.array(np.ones((2, 2), bool))
    assert mask.allowed(np.array([[7]]), np.array([[1, 9]])).shape == (1, 2)


@pytest.mark.parametrize(
    "mask, text",
    [
        (masks.causal & masks.window(4096), "causal & window(4096, 0)"),
        (
            masks.causal & (masks.window(8, None) | masks.sinks(2)),
            "causal & (window(8, None) | sinks(2))",
        ),
        (~(masks.causal | masks.prefix(3)), "~(causal | prefix(3))"),
        (~masks.causal_to_end | masks.dilated(2, 3), "~causal_to_end | dilated(2, 3)"),
        (masks.lengths(k=[1, 2]), "lengths(None, int32[2])"),
        (masks.block_layout(np.ones((2, 3), bool), 4, 5), "block_layout(bool[2,3], 4, 5)"),
        (
            masks.neighborhood((4, 6), 3),
            "neighborhood((4, 6), (3, 3), (1, 1), (1, 1), (False, False))",
        ),
    ],
)
def test_masks_print_as_they_are_written(mask, text):
    assert repr(mask) == text


# ---------------------------------------------------------------- bad input

flags = np.ones((4, 4), bool)


def test_everything_is_the_identity_of_and():
    m = masks.window(2)
    assert masks.everything & m is m
    assert m & masks.everything is m
    assert masks.everything | m == m | masks.everything == masks.everything
    assert masks.everything.dense(3, 4).all() and not (~masks.everything).dense(3, 4).any()
    assert (masks.everything.tiles(5, 7, 2, 3) == FULL).all()
    assert ((~masks.everything).tiles(5, 7, 2, 3) == EMPTY).all()
    with pytest.raises(TypeError):
        masks.everything & None


def test_everything_answers_while_tracing_when_positions_are_traced():
    seen = []

    @jax.jit
    def look(positions):
        seen.append(masks.everything.tiles(4, 4, 2, 2, positions, positions))
        return positions

    look(jnp.arange(4))
    assert isinstance(seen[0], np.ndarray)


def third(q_pos, k_pos):
    return (q_pos - k_pos) % 3 == 0


def test_a_mask_from_a_predicate():
    mask = masks.fn(third)
    q, k = np.arange(5)[:, None], np.arange(7)[None]
    np.testing.assert_array_equal(mask.dense(5, 7), third(q, k))
    np.testing.assert_array_equal((mask & masks.causal).dense(5, 7), third(q, k) & (k <= q))
    assert (mask.tiles(5, 7, 2, 2) == PARTIAL).all()
    assert (mask & masks.prefix(4)).tiles(5, 7, 5, 4)[0, 1] == EMPTY
    assert mask == masks.fn(third) and repr(mask) == "fn(third)"
    assert masks.fn(lambda q, k: k == 2).dense(2, 3).tolist() == [[False, False, True]] * 2

    def traced(x):
        return masks.fn(lambda q, k: k < x)

    with pytest.raises(ValueError, match="closes over a traced array int32"):
        jax.jit(traced)(jnp.int32(3))
    with pytest.raises(TypeError, match="gives int32, expected booleans"):
        masks.fn(lambda q, k: q - k).dense(3, 3)


def test_until_is_the_last_query_that_sees_a_key():
    last = np.random.default_rng(0).integers(-1, 6, (2, 3, 7))
    want = np.arange(5)[:, None] <= last[:, :, None]
    np.testing.assert_array_equal(masks.until(last).dense(5, 7), want)
    got = jax.jit(lambda last: masks.until(last).dense(5, 7))(last)
    np.testing.assert_array_equal(got, want)
    at = np.array([[[6, 0, 3]]], np.int32)
    function = masks.until(last).as_function(np.arange(5)[None, None], at, 3)
    (operand,) = function.operands
    got = function.fn(np.arange(5)[:, None], at[:, :, None], operand.array)
    np.testing.assert_array_equal(got, want[..., at[0, 0]])


BAD = [
    (lambda: masks.window(-1), ValueError, "window: left is -1"),
    (lambda: masks.window(3, -2), ValueError, "window: right is -2"),
    (lambda: masks.window(1.5), TypeError, "window: left is 1.5"),
    (lambda: masks.window(2**31), ValueError, "window: left is 2147483648"),
    (lambda: masks.sinks(-1), ValueError, "sinks: n is -1"),
    (lambda: masks.sinks(True), TypeError, "sinks: n is True"),
    (lambda: masks.prefix(-1), ValueError, "prefix: n is -1"),
    (lambda: masks.prefix(2.0), ValueError, "prefix: n has shape"),
    (lambda: masks.prefix([[1]]), ValueError, "prefix: n has shape"),
    (lambda: masks.prefix([1.0]), TypeError, "prefix: n has dtype float64"),
    (lambda: masks.dilated(2, 0), ValueError, "dilated: dilation is 0"),
    (lambda: masks.dilated(2**20, 2**20), ValueError, "dilated: window * dilation is"),
    (lambda: masks.dilated(-1, 1), ValueError, "dilated: window is -1"),
    (lambda: masks.document([0.5, 1.0]), TypeError, "document: q_ids has dtype float64"),
    (lambda: masks.document(3), ValueError, "document: q_ids has shape ()"),
    (lambda: masks.document([0], [[[1]]]), ValueError, "document: k_ids has shape (1, 1, 1)"),
    (lambda: masks.document([2**40]), ValueError, "document: q_ids reaches beyond 32 bits"),
    (lambda: masks.document([0, 1]).dense(3, 2), ValueError, "document: q_ids has shape (2,)"),
    (lambda: masks.document([0, 1]).dense(2, 3), ValueError, "document: k_ids has shape (2,)"),
    (lambda: masks.neighborhood((4, 4), 0), ValueError, "window=0"),
    (lambda: masks.neighborhood((4, 4), 3, 4), ValueError, "stride=4"),
    (lambda: masks.neighborhood((4, 4), 3, 0), ValueError, "stride=0"),
    (lambda: masks.neighborhood((4, 4), 3, 1, 2), ValueError, "window * dilation <= extent"),
    (lambda: masks.neighborhood((4, 4), 5), ValueError, "window=5"),
    (lambda: masks.neighborhood((4, 4), 3, 1, 0), ValueError, "dilation=0"),
    (lambda: masks.neighborhood((4, 0), 1), ValueError, "extent=0"),
    (lambda: masks.neighborhood((2,) * 4, 1), ValueError, "expected 1 to 3 axes"),
    (lambda: masks.neighborhood((4, 4), (3, 3, 3)), ValueError, "window is (3, 3, 3)"),
    (lambda: masks.neighborhood((4, 4), 3.0), TypeError, "window is 3.0"),
    (lambda: masks.neighborhood((4, 4), 3, causal=1), TypeError, "causal is 1"),
    (lambda: masks.neighborhood((4, 4), 3).dense(16, 15), ValueError, "16 positions"),
    (lambda: masks.lengths(), ValueError, "lengths: q and k are both None"),
    (lambda: masks.lengths(q=3), ValueError, "lengths: q has shape ()"),
    (lambda: masks.lengths(k=[[3]]), ValueError, "lengths: k has shape (1, 1)"),
    (lambda: masks.block_layout(flags * 1, 2, 2), TypeError, "layout has dtype int64"),
    (lambda: masks.block_layout(flags[0], 2, 2), ValueError, "layout has shape (4,)"),
    (lambda: masks.block_layout(flags, 0, 2), ValueError, "block_q is 0"),
    (
        lambda: masks.block_layout(flags, 2, 2).dense(9, 8),
        ValueError,
        "block_layout: layout (4, 4)",
    ),
    (lambda: masks.array(flags[None]), ValueError, "array: mask has shape (1, 4, 4)"),
    (lambda: masks.array(flags * 1.0), TypeError, "array: mask has dtype float64"),
    (lambda: masks.array(flags).tiles(4, 5, 2, 2), ValueError, "array: mask has shape (4, 4)"),
    (lambda: (masks.causal & masks.array(flags)).dense(3, 4), ValueError, "array: mask has shape"),
    (lambda: masks.causal.tiles(4, 4, 0, 2), ValueError, "block_q is 0"),
    (lambda: masks.causal.tiles(4, 4, 2, 2.0), TypeError, "block_k is 2.0"),
    (lambda: masks.causal.dense(0, 4), ValueError, "T is 0"),
    (lambda: masks.causal.tiles(4, 4, 2, 2, np.arange(5)), ValueError, "q_positions"),
    (lambda: masks.causal.tiles(4, 4, 2, 2, None, np.ones(4)), TypeError, "k_positions has dtype"),
    (lambda: masks.causal_to_end.allowed(flags, flags), ValueError, "resolve(T, S) first"),
    (lambda: masks.causal & 3, TypeError, "&"),
    (lambda: masks.fn(3), TypeError, "masks.fn: got 3"),
    (lambda: masks.until([1]), ValueError, "until: last has shape (1,)"),
    (lambda: masks.until([[[1]]]).dense(2, 2), ValueError, "expected (B|1, N|1, 2)"),
]


@pytest.mark.parametrize("call, error, text", BAD)
def test_bad_input_is_named_in_one_line(call, error, text):
    with pytest.raises(error) as info:
        call()
    message = str(info.value)
    assert text in message and "\n" not in message
