"""Multi-matrix factorization attention: oracles, factors that fold, all heads of one query."""

import jax.numpy as jnp
import numpy as np

from attnjax import attend, masks
from attnjax.core.positions import rotary
from attnjax.ops.low_rank.mfa import OPS, mfa
from tests.helpers import exact, near, run
from tests.ops.plain import softmax


def turned(x, place, base=10000.0):
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * place * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def of_values(x, layer, values):
    (B, T, _), (_, N, H) = x.shape, layer.up.shape
    out = np.zeros(x.shape)
    for b, t, n in np.ndindex(B, T, N):
        c = x[b, t] @ layer.down
        q = (c / np.sqrt((c**2).mean() + 1e-5) * layer.gain) @ layer.up[:, n]
        keys = [turned(x[b, j] @ layer.key, j) for j in range(t + 1)]
        w = softmax(np.array([turned(q, t) @ key for key in keys]) / np.sqrt(H))
        out[b, t] += sum(a * values(x[b, j]) for j, a in enumerate(w)) @ layer.out[n]
    return out


def mfa_oracle(x, layer, value):
    return of_values(x, layer, lambda row: row @ value)


def mfa_key_reuse_oracle(x, layer, mix, alpha):
    def values(row):
        k = row @ layer.key
        return k + alpha * (k @ mix)

    return of_values(x, layer, values)


def test_without_factors_it_is_attention_of_many_queries_to_one_key():
    x, layer, value = exact(tuple(OPS[0].sample(seed=2, R=8).values()))
    layer = layer._replace(down=np.eye(8), gain=np.full(8, 1.3))
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)  # nearly its own norm
    q = np.einsum("BTR,RNH->BTNH", 1.3 * x, layer.up)
    k, v = ((x @ w)[:, :, None] for w in (layer.key, value))

    def many_to_one(q, k, v):
        q, k = (rotary(y, jnp.arange(9)) for y in (q, k))
        return attend(q, k, v, mask=masks.causal)

    want = np.einsum("BTNH,NHW->BTW", run(many_to_one, q, k, v), layer.out)
    near(run(mfa, x, layer, value), want, 1e-4)
