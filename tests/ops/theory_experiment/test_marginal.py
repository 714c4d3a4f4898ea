"""Marginals over edges: their oracles, priors that are masks, draws whose mean is the marginal."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.ops.theory_experiment import marginal_attention, sampled_attention
from tests.helpers import draw, near, qkv, run
from tests.ops.plain import blend, kv, weights

B, T, N, K, H = 2, 6, 4, 2, 5


def scores_of(q, k, *more):
    H = q.shape[-1]
    scale = lambda b, n, i, j: q[b, i, n] @ k[b, j, kv(q, k, n)] / np.sqrt(H)
    return lambda b, n, i, j: scale(b, n, i, j) + sum(x[b, n, i, j] for x in more)


def marginal_attention_oracle(q, k, v, log_prior, allowed=None):
    return blend(weights(q, k, allowed, logit=scores_of(q, k, log_prior)), v)


def sampled_attention_oracle(q, k, v, log_prior, noise, allowed=None):
    one = lambda row: (np.arange(row.size) == row.argmax()) * 1.0
    return blend(weights(q, k, allowed, one, scores_of(q, k, log_prior, noise)), v)


def test_a_prior_of_minus_infinity_is_a_mask():
    q, k, v = qkv(B, T, N, H, K=K)
    never = jnp.where(jnp.tri(T, dtype=bool), 0.0, -jnp.inf)[None, None]
    never = jnp.broadcast_to(never, (B, N, T, T))
    near(run(marginal_attention, q, k, v, never), attend(q, k, v, mask=masks.causal))


def test_the_mean_of_draws_is_the_marginal():
    q, k, v = qkv(1, 3, 2, H)
    prior = draw(1, 2, 3, 3, seed=4)
    noise = jax.random.gumbel(jax.random.key(0), (2000, 1, 2, 3, 3))
    drawn = jax.jit(jax.vmap(lambda g: sampled_attention(q, k, v, prior, g)))(noise)
    near(drawn.mean(0), marginal_attention(q, k, v, prior), 0.12)
    every = np.asarray(v)[0].transpose(1, 0, 2)  # of each head; a draw is one of its values
    one = np.asarray(drawn[0])[0, 1, 0]
    assert np.abs(every[0] - one).sum(-1).min() < 1e-5


def test_a_draw_of_the_past_does_not_see_the_future():
    q, k, v = qkv(B, T, N, H, K=K)
    zero = jnp.zeros((B, N, T, T))
    op = lambda *x: run(sampled_attention, *x, zero, zero, mask=masks.causal)
    other = [x.at[:, 4:].multiply(-3.0) for x in (q, k, v)]
    np.testing.assert_array_equal(op(*other)[:, :4], op(q, k, v)[:, :4])
