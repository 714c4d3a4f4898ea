"""Multi-head attention as a Flax NNX module around any attention function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax.typing import Array

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
EditHeads = Callable[[jax.Array], jax.Array]


def unedited(heads: jax.Array) -> jax.Array:
    """The edit of heads that changes nothing."""
    return heads


class Attention(nnx.Module):
    """Projections to q, k, v, the attention function, and the projection back.

        out = concat_n( gate_n(x) * attend(q, k, v)_n ) W_o,    q, k, v = x W_q, x W_k, x W_v

    `attend(q, k, v) -> out` is any function of (B,T,N,H), (B,S,K,H), (B,S,K,H) that gives
    (B,T,N,H): close over the masks, modifications and normalizer that it should use.  A mechanism
    with parameters of its own is an `nnx.Module` with that `__call__`; it is found and trained like
    any other submodule.  `gate(x) -> (B,T,N)` multiplies each head's output (`HeadGate`).

    width x is (B,T,width), and so is the result; heads N; kv_heads K, default N;
    head_width H, default width // heads.

    Raises ValueError when width is not a multiple of heads (and no head_width is given), or heads
    not a multiple of kv_heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        attend: Attend,
        rngs: nnx.Rngs,
        kv_heads: int | None = None,
        head_width: int | None = None,
        gate: Callable[[jax.Array], jax.Array] | None = None,
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        if head_width is None and (heads < 1 or width % heads):
            raise ValueError(f"heads: got {heads}, expected a divisor of width {width}")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads: got {kv_heads}, expected a divisor of heads {heads}")
        head_width = width // heads if head_width is None else head_width
        into = lambda n: nnx.LinearGeneral(width, (n, head_width), use_bias=False, rngs=rngs)
        self.q, self.k, self.v = into(heads), into(kv_heads), into(kv_heads)
        self.o = nnx.LinearGeneral(
            (heads, head_width), width, axis=(-2, -1), use_bias=False, rngs=rngs
        )
        self.attend = attend
        self.gate = gate

    def project(
        self, x: jax.Array, context: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q (B,T,N,H) from x; k and v (B,S,K,H) from `context`, or from x when it is None."""
        source = x if context is None else context
        return self.q(x), self.k(source), self.v(source)

    def combine(self, x: Array, q: Array, k: Array, v: Array, edit: EditHeads = unedited) -> Array:
        """Attends, gates by x where there is a gate, and projects back to (B,T,width).

        `edit` may replace what each head gives, (B,T,N,H), just before that projection.
        """
        return self.finish(x, self.attend(q, k, v), edit)

    def finish(self, x: jax.Array, out: jax.Array, edit: EditHeads = unedited) -> jax.Array:
        """What `combine` makes of the heads' outputs (B,T,N,H)."""
        if self.gate is not None:
            out = out * self.gate(x)[..., None]
        return self.o(edit(out))

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """x (B,T,width), and for cross attention `context` (B,S,width), to (B,T,width)."""
        return self.combine(x, *self.project(x, context))


class HeadGate(nnx.Module):
    """One gate per token and head, sigmoid(x W + b): lets a head write nothing at all.

    `bias` is the starting value of b; the gates begin near sigmoid(bias).

    Paper: Bondarenko et al., "Quantizable Transformers", 2023, arXiv:2306.12929, section 4.2.
    """

    def __init__(self, width: int, heads: int, *, bias: float = 1.0, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, heads, bias_init=nnx.initializers.constant(bias), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B,T,width) to gates (B,T,N) in (0,1); float32 inside, x's dtype outside."""
        return jax.nn.sigmoid(self.linear(x).astype(jnp.float32)).astype(x.dtype)
