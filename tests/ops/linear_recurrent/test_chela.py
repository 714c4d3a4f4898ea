"""The oracle of `chela` in float64 loops, and its own tests."""

import numpy as np

from tests.ops import plain as _plain
from tests.ops.plain import silu


def chela(x, weights):
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
    G = _plain.sigmoid(x @ gate[0] + gate[1])
    return G * np.einsum("btnd,ndw->btw", o, out) + (1 - G) * x
