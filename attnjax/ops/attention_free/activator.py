"""Activator's gated unit: two maps of a token, one through gelu, both normalized, multiplied.

    n = norm(x),    u = norm'(gelu(n W_1 + b_1)),    v = norm'(n W_2 + b_2)
    out = x + (u * v) W_3 + b_3

norm' is one norm, of the inner width.  Tokens never meet: in the paper's classifier only the mean
over them joins what they say.  Its first form adds an MLP, out + mlp(norm(out)) with the same
norm, its second has none.

Paper: Abdullah and Aydin, "Activator: GLU Activations as The Core Functions of a Vision
Transformer", 2024, arXiv:2405.15953; code: Abdullah-88/Activator.
Limits: W_3 = 0 leaves x + b_3.
"""

from typing import Annotated, NamedTuple

from jax.nn import gelu

from attnjax.core.numerics import Affine, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.ops.attention_free.metaformer import Norm
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


class Activator(NamedTuple):
    """Learned: maps between the width W and the inner width E."""

    norm: Norm
    gate: Annotated[Affine, "W E"]
    value: Annotated[Affine, "W E"]
    inner_norm: Annotated[Norm, "E"]
    out: Annotated[Affine, "E W"]


@on_any_mesh
def activator_block(x: Tokens, weights: Activator) -> Tokens:
    """Each token by itself, with its norm and its residual."""
    w = weights
    normed = w.norm.of_tokens(x)
    gate = w.inner_norm.of_tokens(gelu(w.gate(normed), approximate=False))
    value = w.inner_norm.of_tokens(w.value(normed))
    return (wide(x) + w.out(gate * value)).astype(x.dtype)


def _closed(weights: Activator) -> Activator:
    return weights._replace(out=weights.out._replace(w=0 * weights.out.w))


def _bias_added(x: Tokens, weights: Activator) -> Tokens:
    return x + weights.out.b


OPS = (
    Op(
        activator_block,
        papers=(47,),
        sizes={"E": 6},
        limits=(Limit("W_3 = 0 leaves x + b_3", {"weights": adjusted(_closed)}, _bias_added),),
    ),
)
