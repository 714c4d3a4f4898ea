"""Titans' "memory as context": what a memory reads of a segment stands before it in attention.

    of each segment:  h = M(|x Q_m|) O_m,           the memory as the segments before left it
                      y = Attention(x; [P, h, x]),  P learned tokens, the persistent memory
                      r = M'(|y Q_m|) O_m,          M' learns y: keys |y K_m|, values y V_m, gates
                                                    sigmoid(y G + g), see `titans_memory`
                      out = y * r,                  |.| is a vector of length one
    Attention(x; s) = softmax(x Q . s K / sqrt(H)) s V O;  token i sees P, h_j and x_j for j <= i

As a layer ("MAL") a memory comes first and a window reads what it gives: z = titans_memory(...),
projected back to W and added to x, is read by memory_as_gate(z Q, z K, z V, 0, -inf, P, window=w).

Paper: Behrouz, Zhong and Mirrokni, "Titans: Learning to Memorize at Test Time", 2024,
arXiv:2501.00663, sections 4.1 and 4.3.
Limits: a memory that is empty and takes no steps gives nothing.
Differs: a token sees the h of earlier tokens of its segment alone, lest it see later ones through
them; the paper does not say.  Convolutions and norms of x and of both outputs belong to a layer.
In lucidrains/titans-pytorch the memory's tokens are learned, and its read is added.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import features, masks
from attnjax.core.chunks import scan_chunks
from attnjax.core.dispatch import compiled
from attnjax.core.numerics import einsum, wide
from attnjax.core.pairwise.attend import attend
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot
from attnjax.ops.linear_recurrent.titans import Network, State, network, titans_memory
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]
Map = Float[Array, "W N H"]


class Maps(NamedTuple):
    """Q, K, V and O, of the attention or of the memory."""

    q: Map
    k: Map
    v: Map
    out: Float[Array, "N H W"]


class ContextLayer(NamedTuple):
    """Both kinds of maps, G and g for eta, theta and alpha, and the persistent tokens P."""

    attention: Maps
    memory: Maps
    gates: Float[Array, "3 W N"]
    gate_bias: Float[Array, "3 N"]
    persistent: Float[Array, "M W"]


@on_any_mesh
@compiled("segment")
def memory_as_context(
    x: Tokens, layer: ContextLayer, weights: Network, *, segment: int = 64
) -> Tokens:
    """A layer over segments of `segment` tokens; the memory starts as `weights`, from H to H.

    All gradients of a segment are taken at the memory before it.  Time O(T segment).
    """
    if segment < 1:
        raise ValueError(f"segment: {segment}; expected at least 1")
    T = x.shape[1]
    segment = min(segment, T)
    whole = T - T % segment
    memory = tuple(jnp.broadcast_to(wide(w), (len(x), *w.shape)) for w in weights)
    state = State(memory, jax.tree.map(jnp.zeros_like, memory))

    def step(state: State, tokens: Tokens) -> tuple[State, Tokens]:
        return _segment(state, tokens, layer, weights)

    state, out = scan_chunks(step, state, wide(x)[:, :whole], segment)
    if whole < T:  # tokens that filled a segment up would decay the memory
        _, rest = step(state, wide(x)[:, whole:])
        out = jnp.concatenate([out, rest], axis=1)
    return out.astype(x.dtype)


def _segment(
    state: State, x: Tokens, layer: ContextLayer, weights: Network
) -> tuple[State, Tokens]:
    """The memory behind one segment, and what the layer gives for its tokens."""
    own = layer.memory
    asked = features.cosine(_heads(x, own.q))
    read = jax.vmap(jax.vmap(network, (0, 1), 1))(state.memory, asked)
    y = _attention(x, _joined(read, own.out), layer)
    eta, theta, alpha = jax.nn.sigmoid(_gates(y, layer))
    q, k = (features.cosine(_heads(y, w)) for w in (own.q, own.k))
    gates = eta, theta, alpha
    learned, state = titans_memory(
        q, k, _heads(y, own.v), *gates, weights, chunk=x.shape[1], state=state, return_state=True
    )
    return state, y * _joined(learned, own.out)


def _attention(x: Tokens, h: Tokens, layer: ContextLayer) -> Tokens:
    """Of x to the persistent tokens, to h and to x: h_j stands where x_j does."""
    maps, persistent = layer.attention, wide(layer.persistent)
    B, C, _ = x.shape
    first = jnp.broadcast_to(persistent[None], (B, *persistent.shape))
    context = jnp.concatenate([first, h, x], axis=1)
    M, at = len(persistent), np.arange(C)
    places = np.concatenate([np.zeros(M, int), M + at, M + at])
    q, k, v = _heads(x, maps.q), _heads(context, maps.k), _heads(context, maps.v)
    out = attend(q, k, v, mask=masks.causal, q_positions=M + at, k_positions=places)
    return _joined(out, maps.out)


def _heads(x: Tokens, w: Map) -> Float[Array, "B T N H"]:
    return einsum("BTW,WNH->BTNH", x, w)


def _joined(x: Float[Array, "B T N H"], w: Float[Array, "N H W"]) -> Tokens:
    return einsum("BTNH,NHW->BTW", x, w)


def _gates(y: Tokens, layer: ContextLayer) -> Float[Array, "3 B T N"]:
    gates = einsum("BTW,gWN->gBTN", y, layer.gates)
    return gates + wide(layer.gate_bias)[:, None, None]


def _mlp(slot: Slot) -> tuple[np.ndarray, ...]:
    return slot.normal("N H R", 0.7), slot.normal("N R H", 0.7)


def _empty(slot: Slot) -> tuple[np.ndarray, ...]:
    return (slot.normal("N H H", 0.0),)


def _layer(slot: Slot) -> ContextLayer:
    """Maps that keep the size of tokens, and steps that are not too long."""
    layer = slot.tree()
    double = lambda maps: jax.tree.map(lambda w: 2 * w, maps)
    layer = layer._replace(attention=double(layer.attention), gates=0.3 * layer.gates)
    return layer._replace(gate_bias=layer.gate_bias - np.array([[1.0], [4.0], [0.0]]))


def _timid(slot: Slot) -> ContextLayer:
    layer = _layer(slot)
    return layer._replace(gate_bias=layer.gate_bias - 100.0)


OPS = (
    Op(
        memory_as_context,
        papers=(313,),
        draw={"layer": Draw(_layer), "weights": Draw(_mlp), "segment": 4},
        sizes={"N": 2, "H": 4, "R": 3, "M": 2},
        limits=(
            Limit(
                "an empty memory without steps",
                {"weights": Draw(_empty), "layer": Draw(_timid)},
                lambda x: 0 * x,
            ),
        ),
    ),
)
