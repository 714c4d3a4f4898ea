"""The letters of shapes, and the array aliases built from them.

    B batch   T query length   S key length   N query heads   K key/value heads (N % K == 0)
    G = N / K   H head width   D value width   C chunk   W model width   R rank, or table width
    M slots   w window

Layout is jax.nn's: q (B,T,N,H), k (B,S,K,H), v (B,S,K,D), out (B,T,N,D).  Query heads
g*G .. (g+1)*G - 1 share key/value head g.  The same letters stand in einsum strings and in
error messages.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int

# A field of a pytree: an array, but trees are also made of what stands for one, a shape or an axis,
# which a checker of types at run time must let pass.
if TYPE_CHECKING:
    Leaf: TypeAlias = Array
else:
    Leaf = Any

Q = Float[Array, "B T N H"]
K = Float[Array, "B S K H"]
V = Float[Array, "B S K D"]
TokenK = Float[Array, "B T K H"]  # of tokens that are queries and keys at once: T = S
TokenV = Float[Array, "B T K D"]
Out = Float[Array, "B T N D"]
Weights = Float[Array, "B N T S"]

PerQuery = Float[Array, "B T N"]
PerHead = Float[Array, " N"]
Positions = Int[Array, " T"]

__all__ = [
    "Array", "Bool", "Float", "Int", "Leaf",
    "Q", "K", "V", "TokenK", "TokenV", "Out", "Weights", "PerQuery", "PerHead", "Positions",
]  # fmt: skip
