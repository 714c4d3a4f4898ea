"""What tests of strategies share: meshes, an op with operands of every kind, runs in layout."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from attnjax import Blockwise, attend, masks, mods
from attnjax import normalizers as norm
from attnjax.parallel import USP, AllGather, Ring, Ulysses
from attnjax.parallel.layouts import order
from tests import helpers

B, T, N, K, H, D = 2, 32, 4, 2, 8, 6
LINE = Mesh(np.array(jax.devices()[:8]), ("sp",), axis_types=(AxisType.Auto,))
PAIR = Mesh(np.array(jax.devices()[:2]), ("sp",), axis_types=(AxisType.Auto,))
SQUARE = Mesh(
    np.array(jax.devices()[:8]).reshape(4, 2), ("ring", "head"), axis_types=(AxisType.Auto,) * 2
)
INSIDE = {
    "ring": (LINE, Ring("sp")),
    "zigzag": (LINE, Ring("sp", "zigzag")),
    "striped": (LINE, Ring("sp", "striped", Blockwise(2, 3))),
    "ulysses": (PAIR, Ulysses("sp", "zigzag")),
    "usp": (SQUARE, USP("ring", "head", "zigzag")),
    "gather": (LINE, AllGather("sp", "zigzag")),
}
slowly = functools.partial(helpers.sample, mark=pytest.mark.slow)
P = PartitionSpec


def drawn(seed=0, dtype=jnp.float64):
    seeds = itertools.count(12 * seed)
    draw = lambda *shape: helpers.draw(*shape, seed=next(seeds), dtype=dtype)
    q, k, v = draw(B, T, N, H), draw(B, T, K, H), draw(B, T, K, D)
    return {
        "q": q, "k": k, "v": v,
        "log_f": -jax.nn.softplus(draw(B, T, N)), "key": draw(B, T, K),
        "pair": draw(N, T, T), "table": draw(N, 9), "sink": draw(N),
    }  # fmt: skip


def op(given, impl, mask=masks.causal, normalizer=None, **at):
    """Every kind of operand at once."""
    return attend(
        given["q"], given["k"], given["v"],
        mods=(
            mods.forget(given["log_f"]), mods.pair_bias(given["pair"]),
            mods.relative_bias(given["table"]), mods.mod(_add, key=given["key"]),
        ),
        mask=mask, normalizer=normalizer or norm.softmax_sink(given["sink"]), impl=impl, **at,
    )  # fmt: skip


def _add(score, x):
    return score + jnp.tanh(x)


def tokens_first(tokens):
    """How the operands of `op` are split."""
    along = P(None, tokens.axes)
    rows = dict.fromkeys(("q", "k", "v", "log_f", "key"), along)
    return {**rows, "pair": P(None, tokens.axes), "table": P(), "sink": P()}


def laid(given, at):
    """Operands in the order `at` of the tokens."""
    moved = {name: given[name][:, at] for name in ("q", "k", "v", "log_f", "key")}
    return {**given, **moved, "pair": given["pair"][:, at][:, :, at]}


def across(fn, mesh, tokens, at, check=True):
    """fn(given) over whole arrays, run inside shard_map on tokens in the order `at`."""
    specs, out = tokens_first(tokens), P(None, tokens.axes)
    inner = jax.shard_map(fn, mesh=mesh, in_specs=(specs,), out_specs=out, check_vma=check)
    return lambda given: inner(laid(given, at))[:, np.argsort(at)]


def both(fn):
    """Value and gradients along a fixed cotangent."""
    run = lambda x: (lambda out, pull: (out, pull(jnp.sin(3 * out))[0]))(*jax.vjp(fn, x))
    return jax.jit(run)


@functools.cache
def on_one_device(seed, dtype):
    """Value and gradients of `op` by definition, as NumPy arrays."""
    return jax.tree.map(np.asarray, both(lambda x: op(x, "dense"))(drawn(seed, dtype)))


def places(mesh, strategy):
    tokens = strategy.sharding
    outer = tokens.axes[: len(tokens.axes) - tokens.within]
    return order(tokens.layout, int(np.prod([mesh.shape[a] for a in outer])), T)
