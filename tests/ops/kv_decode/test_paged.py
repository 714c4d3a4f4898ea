"""Pages and shared prefixes: oracles; orders of pages, garbage behind the end, one step."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.ops.kv_decode import cascade_attention, paged_attention
from tests.helpers import draw, draws, near, qkv
from tests.laws.cases import BY_NAME
from tests.ops.plain import blend, weights


def paged_attention_oracle(q, k_pages, v_pages, lists, lengths):
    T, C, rows = q.shape[1], k_pages.shape[1], []
    for b, length in enumerate(np.asarray(lengths)):
        place = lambda j, b=b: (int(lists[b, j // C]), j % C)
        k, v = (np.array([x[place(j)] for j in range(length)])[None] for x in (k_pages, v_pages))
        seen = np.array([[j <= length - T + t for j in range(length)] for t in range(T)])
        rows.append(blend(weights(q[b : b + 1], k, seen), v))
    return np.concatenate(rows)


def cascade_attention_oracle(q, prefix_k, prefix_v, k, v):
    (B, T), S, L = q.shape[:2], k.shape[1], len(prefix_k)
    k, v = (
        np.concatenate([np.stack([a] * B), x], axis=1) for a, x in ((prefix_k, k), (prefix_v, v))
    )
    seen = np.array([[j < L or j - L <= S - T + t for j in range(L + S)] for t in range(T)])
    return blend(weights(q, k, seen), v)


def test_any_order_of_the_pages_and_anything_behind_the_end():
    args = BY_NAME["paged_attention"].sample()
    paged = jax.jit(paged_attention)
    want = paged(**args)
    order = np.random.default_rng(3).permutation(16)
    moved = {name: args[name][order] for name in ("k_pages", "v_pages")}
    lists = np.argsort(order)[np.asarray(args["lists"])]
    near(paged(args["q"], **moved, lists=jnp.asarray(lists), lengths=args["lengths"]), want)
    elsewhere = args["lists"].at[:, -1].set(7)
    near(paged(**args | {"lists": elsewhere}), want)


def test_one_program_takes_every_length():
    q, (k_pages, v_pages) = draw(2, 1, 4, 8), draws((6, 4, 2, 8), (6, 4, 2, 8), seed=2)
    lists = jnp.asarray([[4, 1, 0], [2, 5, 3]])
    paged = jax.jit(lambda *args: paged_attention(*args))  # a cache of its own
    for length in ([1, 12], [7, 4]):
        got = paged(q, k_pages, v_pages, lists, jnp.asarray(length))
        want = paged_attention_oracle(*map(np.float64, (q, k_pages, v_pages)), lists, length)
        near(got, want)
    assert paged._cache_size() == 1


def test_a_shared_prefix_is_a_prefix_of_each():
    (q, k, v), (a, b) = qkv(3, 2, 4, 8, S=6, K=2), draws((5, 2, 8), (5, 2, 8), seed=4)
    both = [jnp.concatenate([jnp.stack([x] * 3), y], axis=1) for x, y in ((a, k), (b, v))]
    near(cascade_attention(q, a, b, k, v), attend(q, *both, mask=masks.causal_to_end))
