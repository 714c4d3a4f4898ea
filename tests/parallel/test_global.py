"""Running sums, selections, global arrays, and what bad input is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, explain, linear_attend, masks
from attnjax.core.blocks.select import every_block, top_k
from attnjax.ops.softmax_core import forgetting_attention, multi_head_attention
from attnjax.parallel import (
    LASP2,
    USP,
    AllGather,
    On,
    Ring,
    Ulysses,
    cumsum,
    shard,
)
from tests.helpers import close, draw
from tests.parallel.inside import (
    LINE,
    SQUARE,
    B,
    D,
    H,
    K,
    N,
    P,
    T,
    drawn,
    places,
)

pytestmark = pytest.mark.usefixtures("fresh_programs_everywhere")


@pytest.mark.parametrize("kind", ["contiguous", "zigzag", "striped"])
def test_running_sums_are_those_of_the_text(kind):
    with jax.enable_x64():
        x = draw(3, T, 2)
        for mesh, strategy in (
            (LINE, Ring("sp", kind)),
            (SQUARE, USP("ring", "head", kind)),
        ):
            at, split = places(mesh, strategy), P(None, strategy.sharding.axes)
            run = jax.shard_map(
                lambda x, impl=strategy: cumsum(x, impl),
                mesh=mesh, in_specs=split, out_specs=split,
            )  # fmt: skip
            slope = jax.grad(lambda x, run=run, at=at: jnp.sum(jnp.sin(run(x[:, at]))))
            close(jax.jit(run)(x[:, at]), np.cumsum(x, 1)[:, at])
            ahead = np.cos(np.cumsum(x, 1))[:, ::-1]
            close(jax.jit(slope)(x), np.cumsum(ahead, 1)[:, ::-1])


@pytest.mark.parametrize("strategy", [AllGather("sp", "zigzag"), Ulysses("sp")], ids=str)
def test_positions_of_each_example_travel_with_the_tokens(strategy):
    q, k, v = (draw(2, 16, 8, 4, seed=i) for i in range(3))
    at = np.array([np.arange(16), np.arange(16) - 5])  # the second is padded on the left
    op = functools.partial(
        attend, mask=masks.causal & masks.fn(_real), q_positions=at, k_positions=at
    )
    out = jax.jit(shard(op, LINE, strategy))(q, k, v)
    close(out, op(q, k, v), 1e-6)
    with pytest.raises(ValueError, match="positions of each example: take AllGather or Ulysses"):
        shard(op, LINE, Ring("sp"))(q, k, v)


def _real(q_pos, k_pos):
    return k_pos >= 0


def test_selected_blocks_of_all_keys_serve_the_queries_here():
    with jax.enable_x64():
        given = drawn(seed=7)
        scores = draw(B, T // 2, N, T // 4, seed=1)
        sizes = {"block_q": 2, "block_k": 4}
        chosen = top_k(scores, 3, **sizes)

        def attended(q, k, v, blocks, impl="dense"):
            return attend(q, k, v, blocks=blocks, mask=masks.causal, impl=impl)

        inside = functools.partial(attended, impl=AllGather("sp"))

        run = jax.shard_map(inside, mesh=LINE, in_specs=P(None, "sp"), out_specs=P(None, "sp"))
        args = given["q"], given["k"], given["v"], chosen
        want = jax.jit(attended)(*args)
        every = jax.jit(attended)(*args[:3], every_block(B, T, T, **sizes))
        assert np.abs(want - every).max() > 0.1
        close(jax.jit(run)(*args), want)


@pytest.mark.parametrize("sizes", [(27, 27), (1, 1), (5, 40), (40, 5)])
def test_any_lengths_are_padded_to_whole_shares(sizes):
    with jax.enable_x64():
        q, k = (draw(B, n, N, H, seed=n) for n in sizes)
        v, run = jnp.sin(k), functools.partial(attend, mask=masks.causal_to_end)
        want = jax.jit(functools.partial(run, impl="dense"))(q, k, v)
        for strategy in (Ring("sp", "zigzag"), AllGather("sp", "striped")):
            spread = jax.jit(functools.partial(run, impl=On(LINE, strategy)))
            close(spread(q, k, v), want)


@pytest.mark.parametrize("strategy", [Ring("sp"), AllGather("sp")], ids=str)
def test_padding_is_beyond_positions_that_queries_and_keys_share(strategy):
    q, k, v = (draw(1, 10, 2, 4, seed=i) for i in range(3))
    at = 2 * np.arange(10)
    op = functools.partial(attend, mask=masks.window(6), q_positions=at, k_positions=at)
    close(jax.jit(shard(op, LINE, strategy))(q, k, v), op(q, k, v), 1e-6)


def test_shard_takes_any_mesh_and_is_told_by_explain():
    given = drawn(dtype=jnp.float32)
    args = given["q"], given["k"], given["v"], given["log_f"]
    want = jax.jit(forgetting_attention)(*args)
    for mesh in (LINE, jax.make_mesh((8,), ("sp",))):
        spread = shard(forgetting_attention, mesh, Ring("sp", "zigzag"))
        close(jax.jit(spread)(*args), want, 3e-6)
    assert "Ring(axis='sp', layout='zigzag'" in str(explain(spread, *args))


def _inside(strategy, mesh=LINE, **changes):
    given = drawn(dtype=jnp.float32) | changes
    fn = lambda q, k, v: attend(q, k, v, impl=strategy)
    split = P(None, mesh.axis_names)
    run = jax.shard_map(fn, mesh=mesh, in_specs=split, out_specs=split)
    return run(given["q"], given["k"], given["v"])


def _attend(**options):
    given = drawn(dtype=jnp.float32)
    return attend(given["q"], given["k"], given["v"], **options)


BAD = {
    "outside": (lambda: _attend(impl=Ring("sp")), "Ring: called outside jax.shard_map"),
    "outside_linear": (
        lambda: linear_attend(*(jnp.ones((1, 8, 2, 4)),) * 3, impl=LASP2("sp")),
        "LASP2: called outside jax.shard_map",
    ),
    "axis": (lambda: _inside(Ring("tp")), "axis is 'tp', expected one of the mesh's, 'sp'"),
    "axis_on": (
        lambda: On(LINE, Ring("tp")), "Ring: axis is 'tp', expected one of the mesh's, 'sp'",
    ),
    "heads": (
        lambda: _inside(Ulysses("sp")), r"N = 4 heads .* 8 devices; Ring\('sp'\) or AllGather",
    ),
    "heads_usp": (
        lambda: _inside(USP("ring", "head"), SQUARE, q=jnp.ones((B, T, 1, H)),
                        k=jnp.ones((B, T, 1, H)), v=jnp.ones((B, T, 1, D))),
        r"N = 1 heads .* 2 devices; Ring\('ring'\) can",
    ),
    "given": (lambda: _inside(Ring("sp", "given")), "without q_positions and k_positions"),
    "layout": (lambda: Ring("sp", "zig"), "layout is 'zig', expected one of 'contiguous'"),
    "same_axes": (lambda: USP("sp", "sp"), "both axes are 'sp'"),
    "lengths": (
        lambda: _inside(Ring("sp", lengths=(32, 40))), "lengths gives S = 40, expected 1 .. 32",
    ),
    "odd": (
        lambda: _inside(Ring("sp", "zigzag"), q=jnp.ones((B, 24, N, H)), k=jnp.ones((B, 24, K, H)),
                        v=jnp.ones((B, 24, K, D))),
        "zigzag needs even numbers of tokens here, not T = 3",
    ),
    "striped_linear": (
        lambda: jax.shard_map(
            lambda x: linear_attend(x, x, x, impl=LASP2("sp", "striped")),
            mesh=LINE, in_specs=P(None, "sp"), out_specs=P(None, "sp"),
        )(jnp.ones((1, 16, 2, 4))),
        "few runs of tokens",
    ),
    "wrong_engine": (
        lambda: shard(multi_head_attention, LINE, LASP2("sp"))(*(jnp.ones((1, 8, 2, 4)),) * 3),
        "LASP2 is for linear_attend",
    ),
    "positions": (
        lambda: jax.shard_map(
            lambda x: attend(x, x, x, impl=Ring("sp"), q_positions=np.arange(16)),
            mesh=LINE, in_specs=P(None, "sp"), out_specs=P(None, "sp"),
        )(jnp.ones((1, 16, 2, 4))),
        r"q_positions has shape \(16,\), expected \(T,\) = \(2,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    call, text = BAD[case]
    with pytest.raises(ValueError, match=text):
        call()


def test_wrong_kinds_are_told():
    with pytest.raises(TypeError, match="inner is 'dense', expected None or a Blockwise"):
        Ring("sp", inner="dense")
    with pytest.raises(TypeError, match="strategy is 'ring', expected a value such as"):
        On(LINE, "ring")
    with pytest.raises(TypeError, match="takes no impl"):
        shard(jnp.sin, LINE, Ring("sp"))


def test_selections_are_refused_by_those_who_have_not_all_keys():
    given = drawn(dtype=jnp.float32)
    chosen = every_block(B, T, T, block_k=4)
    for mesh, strategy in ((LINE, Ring("sp")), (SQUARE, Ulysses("head"))):
        on = On(mesh, strategy)
        with pytest.raises(ValueError, match="blocks are selected from all keys: take AllGather"):
            attend(given["q"], given["k"], given["v"], blocks=chosen, impl=on)
