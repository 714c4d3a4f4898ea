"""Test-time training: a state that is a network, a step of gradient descent for each token.

    W_t = W_0 - eta_i sum_{j <= t} rate_j g_j,    o_t = q_t + norm(f(q_t; W_t)),    i = t mod C
    g_j = gradient of |norm(f(k_j; W_0)) - (v_j - k_j)|^2 / 2 with respect to W, at W_0

within a mini-batch of C tokens; the next starts from W at its end.  f is one affine map in
TTT-Linear, two with gelu between in TTT-MLP, norm a layer norm of each head, eta_i a number of the
place i.

Since g of an affine map is an outer product, a layer of f at W_t is linear attention that starts
from a state W_0, with keys (x_j, 1), its inputs, and values -rate_j dloss/d(output).

Paper: Sun et al., "Learning to (Learn at Test Time): RNNs with Expressive Hidden States", 2024,
arXiv:2407.04620, section 2; code: test-time-training/ttt-lm-jax.
Limits: rate = 0 leaves the network as it is.
Differs: the released layer has rate_j = sigmoid(x w + b), eta_i = max(1 / (i + 1) + learned, 0)
times a base rate, 1 or 0.1, over H, rotary positions that restart in each mini-batch of 16, and a
norm and gate behind.  In flash-linear-attention the rate of a step is that of the token that reads,
eta_i rate_t. There are no packed documents: mini-batches would begin with each, at another place in
every row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import gelu

from attnjax.core.chunks import scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import aligned, einsum, layer_norm, repeat_heads, wide
from attnjax.core.recurrence.linear import linear_attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, fill, uniform
from attnjax.typing import Array, Float, PerQuery, Q, TokenK

Network = tuple[Float[Array, "N _ _"], ...]  # layers (inputs + 1, outputs) of a head, biases last
State = tuple[Float[Array, "B N _ _"], ...]  # such layers of each example


class Norm(NamedTuple):
    """The learned numbers of the layer norm of each head."""

    gain: Float[Array, "N H"]
    bias: Float[Array, "N H"]


class Tokens(NamedTuple):
    """What there is of each token of a mini-batch."""

    q: Float[Array, "B C N H"]
    k: Float[Array, "B C N H"]
    v: Float[Array, "B C N H"]
    rate: Float[Array, "B C N"]


@on_any_mesh
@compiled("return_state")
def ttt_memory(
    q: Q,
    k: TokenK,
    v: TokenK,
    rate: PerQuery,
    network: Network,
    norm: Norm,
    eta: Float[Array, " C"],
    *,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """Learns, as it reads, to give v - k for k.  Mini-batches have as many tokens as eta numbers.

    The network starts as `network`; a state goes on where a mini-batch ends.  Keys are as wide as
    values, N is a multiple of their heads.
    """
    T, C = q.shape[1], len(eta)
    eta, norm = wide(eta), jax.tree.map(wide, norm)
    tokens = Tokens(*map(wide, (q, repeat_heads(k, q), repeat_heads(v, q), rate)))
    start = lambda w: jnp.broadcast_to(wide(w), (len(q), *w.shape))
    last = tuple(map(start, network)) if state is None else state
    parts, whole = [], T - T % C
    if whole:
        first = jax.tree.map(lambda x: x[:, :whole], tokens)
        step = lambda layers, tokens: _mini_batch(layers, tokens, norm, eta)
        last, out = scan_chunks(jax.checkpoint(step), last, first, C)
        parts.append(out)
    if whole < T:
        rest = jax.tree.map(lambda x: x[:, whole:], tokens)
        last, out = _mini_batch(last, rest, norm, eta[: T - whole])
        parts.append(out)
    out = jnp.concatenate(parts, axis=1).astype(v.dtype)
    return (out, last) if return_state else out


def _mini_batch(
    layers: State, tokens: Tokens, norm: Norm, eta: Float[Array, " C"]
) -> tuple[State, Float[Array, "B C N H"]]:
    """The network behind a mini-batch, and the outputs of its tokens."""
    q, k, v, rate = tokens

    def loss(shifts: tuple[Array, ...]) -> tuple[Array, list[Array]]:
        """With the output of each layer shifted; and the inputs of the layers."""
        inputs, x = [], k
        for layer, shift in zip(layers, shifts, strict=True):
            inputs.append(_and_one(gelu(x) if inputs else x))
            x = einsum("BCNH,BNHD->BCND", inputs[-1], layer) + shift
        return jnp.sum(jnp.square(_normed(x, norm) - (v - k))) / 2, inputs

    still = tuple(jnp.zeros((*k.shape[:3], layer.shape[-1]), k.dtype) for layer in layers)
    slopes, inputs = jax.grad(loss, has_aux=True)(still)
    x, after = q, []
    for i, (layer, slope, key) in enumerate(zip(layers, slopes, inputs, strict=True)):
        query = _and_one(gelu(x) if i else x)
        step = (rate[..., None] * key, slope)
        read, moved = linear_attend(query, *step, return_state=True)
        x = einsum("BCNH,BNHD->BCND", query, layer) - eta[None, :, None, None] * read
        after.append(layer - eta[-1] * moved.memory)
    return tuple(after), q + _normed(x, norm)


def _and_one(x: Array) -> Array:
    """The input of the bias behind those of a layer."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def _normed(x: Array, norm: Norm) -> Array:
    return layer_norm(x) * aligned(norm.gain, x) + aligned(norm.bias, x)


def _fixed(q: Q, network: Network, norm: Norm) -> Array:
    x = q
    for i, layer in enumerate(network):
        x = einsum("BCNH,NHD->BCND", _and_one(gelu(x) if i else x), layer)
    return q + _normed(x, norm)


def _mlp(slot: Slot) -> tuple[np.ndarray, ...]:
    first, second = slot.normal("N H M", 0.4), slot.normal("N M H", 0.4)
    return tuple(np.concatenate([w, 0.1 * w[:, :1]], axis=1) for w in (first, second))


OPS = (
    Op(
        ttt_memory,
        draw={
            "rate": uniform(0.1, 0.5),
            "network": Draw(_mlp),
            "eta": uniform(0.2, 1.0),
        },
        sizes={"C": 4, "M": 6},
        limits=(Limit("rate = 0 leaves the network as it is", {"rate": fill(0.0)}, _fixed),),
        exempt={"split": "a state stands for whole mini-batches: runs are split where one ends"},
    ),
)
