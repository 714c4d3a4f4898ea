"""CHELA: its oracle; the merged kernel; what is left without convolution and gate."""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import rms_norm
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.scan.convolution import causal_conv, long_conv
from attnjax.ops.linear_recurrent import chela
from attnjax.ops.linear_recurrent.chela import merged
from tests.helpers import draws, near
from tests.laws.cases import BY_NAME
from tests.ops.plain import sigmoid, silu

B, T = 2, 12


def chela_oracle(x, weights):
    """The two convolutions apart, and attention as a sum over pairs."""
    long, short, z, q, k, v, out, gate = weights
    smooth, o = np.zeros_like(x), np.zeros((*x.shape[:2], *v.shape[1:]))
    for kernel in (long, short):
        for t in range(x.shape[1]):
            for j in range(min(t + 1, len(kernel))):
                smooth[:, t] += kernel[j] * x[:, t - j]
    Z = silu(smooth @ z[0] + z[1])[:, :, None]
    Q, K = silu(Z * q[0] + q[1]), silu(Z * k[0] + k[1])
    V = silu(np.einsum("btw,wnd->btnd", x, v))
    for b, t, n in np.ndindex(o.shape[:3]):
        o[b, t, n] = sum(Q[b, t, n] @ K[b, j, n] * V[b, j, n] for j in range(t + 1))
    o /= np.sqrt((o**2).mean(-1, keepdims=True) + 1e-6)
    G = sigmoid(x @ gate[0] + gate[1])
    return G * np.einsum("btnd,ndw->btw", o, out) + (1 - G) * x


def test_a_merged_kernel_is_the_sum_of_both_convolutions():
    x, long, short = draws((B, T, 3), (9, 3), (4, 3))
    want = long_conv(x, long)[0] + causal_conv(x, short)[0]
    near(long_conv(x, merged(long, short))[0], want)


def test_chela_without_convolution_and_gate_is_linear_attention():
    x, w = (BY_NAME["chela"].sample()[name] for name in ("x", "weights"))
    alone = jnp.zeros_like(w.short).at[0].set(1.0)
    w = w._replace(long=0 * w.long, short=alone, gate=w.gate._replace(b=w.gate.b + 1e4))
    z = jax.nn.silu(w.z(x))[:, :, None]
    q, k = jax.nn.silu(w.q(z)), jax.nn.silu(w.k(z))
    o = linear_attend(q, k, jax.nn.silu(jnp.einsum("BTW,WND->BTND", x, w.v)))
    near(chela(x, w), jnp.einsum("BTND,NDW->BTW", rms_norm(o), w.out), 1e-4)
