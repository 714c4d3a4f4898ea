"""Native sparse attention: its oracle, its branches, what it selects, the layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import masks
from attnjax.nn import NativeSparse
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import nsa
from attnjax.ops.sparse_select.nsa import Branches, native_sparse_attention
from tests.helpers import draws, exact, near, qkv
from tests.ops.plain import blend, both, causal, weights

B, T, N, K, H = 2, 31, 4, 2, 8


def _mean_of_runs(x, length, stride):
    B, S, K, H = x.shape
    starts = list(range(0, S - length + 1, stride))
    out = np.zeros((B, len(starts), K, H))
    for c, start in enumerate(starts):
        out[:, c] = sum(x[:, start + i] for i in range(length)) / length
    return out


def native_sparse_attention_oracle(
    q, k, v, gates, branches, compressed=None, local=None, allowed=None
):
    (B, T, N), (S, K) = q.shape[:3], k.shape[1:3]
    length, stride, size, top, window = branches
    gates = np.broadcast_to(gates, (B, T, N, 3))
    k_runs, v_runs = compressed or (_mean_of_runs(x, length, stride) for x in (k, v))
    runs = [range(c * stride, c * stride + length) for c in range((S - length) // stride + 1)]
    ok = np.broadcast_to(
        causal(T, S) if allowed is None else both(allowed, causal(T, S)), (B, N, T, S)
    )
    # compressed: a run is visible when its tokens are, judged by the first and the last
    run_ok = np.zeros((B, N, T, len(runs)), bool)
    for c, run in enumerate(runs):
        run_ok[..., c] = ok[..., run[0]] & ok[..., run[-1]]
    p = weights(q, k_runs[:, : len(runs)], run_ok)
    one = blend(p, v_runs[:, : len(runs)])
    # selected: a run's probability counts for each stride of tokens that it and the block share
    seen = np.zeros((B, N, T, S), bool)
    for b, g, t in np.ndindex(B, K, T):
        group = range(g * N // K, (g + 1) * N // K)
        own = t // size
        mass = {}
        for j in range(min(own + 1, -(-S // size))):
            shared = [len(set(run) & set(range(j * size, (j + 1) * size))) for run in runs]
            mass[j] = sum(
                p[b, n, t, c] * shared[c] / stride for n in group for c in range(len(runs))
            )
            if j in (0, own, own - 1):
                mass[j] = np.inf
        for j in sorted(mass, key=lambda j: -mass[j])[:top]:
            seen[b, group, t, j * size : (j + 1) * size] = True
    two = blend(weights(q, k, ok & seen), v)
    # local
    near = np.array([[i - j < window for j in range(S)] for i in range(T)])
    k_local, v_local = local or (k, v)
    three = blend(weights(q, k_local, ok & near), v_local)
    return gates[..., :1] * one + gates[..., 1:2] * two + gates[..., 2:] * three


# Runs of 4 at strides of 2, blocks of 4: 4 of 8 blocks of 31 tokens, so one is chosen freely.
SIZES = Branches(length=4, stride=2, size=4, top=4, window=5)


def test_nsa_runs_its_branches_over_keys_of_their_own():
    q, k, v = qkv(B, T, N, H, K=K)
    n = (T - 4) // 2 + 1
    (gates,) = draws((B, T, 1, 3), seed=1)
    compressed, local = draws(*((B, n, K, H),) * 2, seed=2), draws(*((B, T, K, H),) * 2, seed=3)
    options = {"compressed": tuple(compressed), "local": tuple(local)}
    got = native_sparse_attention(q, k, v, gates, branches=SIZES, **options)
    oracle = native_sparse_attention_oracle
    near(got, oracle(*exact((q, k, v, gates)), SIZES, **exact(options)))


def layer():
    return NativeSparse(12, N, kv_heads=K, branches=SIZES, rngs=nnx.Rngs(0))


def test_nsa_layer_is_the_paper_s_formula_from_the_input_on():
    module = layer()
    module.compress[0].code[...] *= 50  # as large as what it is added to
    (x,) = draws((B, T, 12))
    weight = lambda m: exact(m.kernel[...])
    project = lambda m: np.einsum("btw,wnh->btnh", exact(x), weight(m))
    runs = []
    for phi, m in zip(module.compress, module.compressed, strict=True):
        each = []
        for start in range(0, T - 4 + 1, 2):
            block = project(m)[:, start : start + 4] + exact(phi.code[...])[:, None]
            flat = block.transpose(0, 2, 1, 3).reshape(B, K, -1)
            hidden = np.maximum(flat @ weight(phi.inner) + exact(phi.inner.bias[...]), 0)
            each.append(hidden @ weight(phi.outer) + exact(phi.outer.bias[...]))
        runs.append(np.stack(each, axis=1))
    hidden = np.maximum(exact(x) @ weight(module.hidden) + exact(module.hidden.bias[...]), 0)
    logits = np.einsum("btw,wnc->btnc", hidden, weight(module.mix)) + exact(module.mix.bias[...])
    out = native_sparse_attention_oracle(
        *(project(m) for m in (module.q, module.k, module.v)),
        1 / (1 + np.exp(-logits)),
        SIZES,
        compressed=runs,
        local=[project(m) for m in module.local],
    )
    near(module(x), np.einsum("btnh,nhw->btw", out, weight(module.o)))


def test_nsa_layer_is_causal_and_trains_all_it_has():
    module = layer()
    x, other = draws((B, T, 12), (B, T, 12))
    fn = nnx.jit(lambda m, x: m(x))
    past = fn(module, x)
    for now in (9, 18):  # inside a block, and before a run is whole
        changed = fn(module, jnp.concatenate([x[:, :now], other[:, now:]], 1))
        near(changed[:, :now], past[:, :now], 1e-6)
        assert jnp.abs(changed[:, now:] - past[:, now:]).max() > 1e-2
    slope = nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(module)
    idle = {
        jax.tree_util.keystr(path)
        for path, g in jax.tree.leaves_with_path(nnx.state(slope))
        if jnp.abs(g).max() < 1e-4
    }
    # what is the same in all keys moves no weight
    assert idle == {"['compress'][0]['outer']['bias'].value"}
    with pytest.raises(ValueError, match="context is given, expected None"):
        module(x, x)


def chosen(q, runs, mask=masks.causal, sizes=SIZES):
    keys = jnp.zeros((1, q.shape[1], 1, H))
    found = nsa.nsa_blocks(q, keys, sizes, runs, mask)
    return np.asarray(jnp.where(found.valid, found.indices, -1))


def test_nsa_selects_for_a_group_the_first_the_two_latest_and_the_most_important():
    """Of a key that only the second of two heads looks for, in a run that two blocks share."""
    q = jnp.zeros((1, T, 2, H)).at[:, :, 1, 0].set(30.0)
    runs = jnp.zeros((1, 14, 1, H)).at[:, 5, 0, 0].set(30.0)  # tokens 10..13: blocks 2 and 3
    found = chosen(q, runs, sizes=SIZES._replace(top=5))
    assert found.shape == (1, T, 1, 5)
    assert [set(row) for row in found[0, [0, 5, 12, 13, 30], 0]] == [
        {0, -1}, {0, 1, -1}, {0, 2, 3, 1, -1}, {0, 2, 3, 1, -1}, {0, 2, 3, 6, 7},
    ]  # fmt: skip
    unseen = chosen(q, runs, masks.causal & ~masks.prefix(11), SIZES._replace(top=4))
    assert set(unseen[0, 30, 0]) != set(chosen(q, runs)[0, 30, 0])


def test_nsa_few_blocks_are_not_all_blocks():
    q, k, v = qkv(B, T, N, H, K=K)
    gates = jnp.zeros((B, T, 1, 3)).at[..., 1].set(1.0)
    op = functools.partial(native_sparse_attention, q, k, v, gates)
    dense = multi_head_attention(q, k, v, mask=masks.causal)
    near(op(branches=SIZES._replace(top=8)), dense)
    near(op(branches=SIZES._replace(top=99)), dense)
    few = op(branches=SIZES)
    near(few[:, :16], dense[:, :16])  # they have no more than four blocks
    assert jnp.abs(few[:, 16:] - dense[:, 16:]).max() > 0.1


def test_nsa_tells_what_does_not_fit():
    q, k, v = qkv(B, T, N, H, K=K)
    gates = jnp.ones((B, T, N, 3))
    op = functools.partial(native_sparse_attention, q, k, v)
    for wrong in (Branches(stride=5), Branches(size=40), Branches(top=2), Branches(window=0)):
        with pytest.raises(ValueError, match="branches: .* expected stride to divide"):
            op(gates, branches=wrong)
    with pytest.raises(ValueError, match=r"gates: shape \(2, 31, 4, 2\); expected \(B,T,N or 1,3"):
        op(gates[..., :2])
    with pytest.raises(ValueError, match="compressed: 31 keys; expected 14 runs"):
        op(gates, compressed=(k, v), branches=SIZES)
