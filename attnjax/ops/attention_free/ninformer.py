"""NiNformer's gate: a token is multiplied by what an MLP-Mixer block makes of all tokens.

    n = norm(x),    t = n + mlp_T(norm_t(n)),    g = t + mlp(norm_c(t))
    out = x + (n W + b) * g

mlp_T goes along the tokens, T -> E -> T, for each channel, mlp along the channels, each
gelu(u W_1 + b_1) W_2 + b_2.  The number of tokens is that of its weights.

Paper: Abdullah and Aydin, "NiNformer: A Network in Network Transformer with Token Mixing Generated
Gating Function", 2024, arXiv:2403.02411; code: Abdullah-88/NiNformer.
Limits: W = b = 0 leaves x; MLPs that give zero leave x + (n W + b) * n.
Differs: the MLP that follows, out + mlp'(norm(out)), belongs to a layer; the released code takes
the same norm for both.
"""

from typing import Annotated, NamedTuple

from jax.nn import gelu

from attnjax.core.numerics import Affine, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


class NiNformer(NamedTuple):
    """Learned, for T tokens."""

    norm: Norm
    token_norm: Norm
    token_up: Annotated[Affine, "T E"]
    token_down: Annotated[Affine, "E T"]
    channel_norm: Norm
    up: Annotated[Affine, "W E"]
    down: Annotated[Affine, "E W"]
    gated: Annotated[Affine, "W W"]


@on_any_mesh
def ninformer_gate(x: Tokens, weights: NiNformer) -> Tokens:
    """With its norm and its residual; ValueError for another number of tokens."""
    w, T = weights, x.shape[1]
    if len(w.token_up.w) != T:
        raise ValueError(f"ninformer_gate: x has T = {T}, expected {len(w.token_up.w)}")
    normed = w.norm.of_tokens(x)
    across = w.token_norm.of_tokens(normed).swapaxes(1, 2)
    across = w.token_down(gelu(w.token_up(across), approximate=False)).swapaxes(1, 2)
    gate = normed + across
    hidden = gelu(w.up(w.channel_norm.of_tokens(gate)), approximate=False)
    gate = gate + w.down(hidden)
    return (wide(x) + w.gated(normed) * gate).astype(x.dtype)


def _closed(weights: NiNformer) -> NiNformer:
    return weights._replace(gated=_nothing(weights.gated))


def _without_mlps(weights: NiNformer) -> NiNformer:
    return weights._replace(token_down=_nothing(weights.token_down), down=_nothing(weights.down))


def _nothing(affine: Affine) -> Affine:
    return Affine(*(0 * part for part in affine))


def _unchanged(x: Tokens) -> Tokens:
    return x


def _own_product(x: Tokens, weights: NiNformer) -> Tokens:
    normed = weights.norm.of_tokens(x)
    return x + weights.gated(normed) * normed


OPS = (
    Op(
        ninformer_gate,
        papers=(43,),
        reads="all",
        sizes={"E": 6},
        limits=(
            Limit("W = b = 0 leaves x", {"weights": adjusted(_closed)}, _unchanged),
            Limit("MLPs of zero", {"weights": adjusted(_without_mlps)}, _own_product),
        ),
    ),
)
