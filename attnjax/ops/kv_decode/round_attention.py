"""Round attention: a dialogue's rounds are read by layers above one of them if that one needs them.

    at the watershed layer   m_r = mean over heads and queries i of the current round of
                                   sum_{j in round r} softmax_j(q_i . k_j / sqrt(H))
    chosen   the fewest earlier rounds that have the share p of their m; the first and the current
    above    A_ij = softmax_j(q_i . k_j / sqrt(H)) over keys j <= i of chosen rounds

Rounds are chosen once for all queries of the current round and for all layers above; the keys of
the others stay where they are, such as on the host, until a later round chooses them.

Paper: Tang et al., "Round Attention: A Novel Round-Level Attention Mechanism to Accelerate LLM
Inference", 2025, arXiv:2502.15294.
Limits: a share of one, or all rounds chosen, is causal attention.
Differs: no code was found; how many rounds are chosen, a share of the mass, is our reading.

Of a cache, whose slots the work follows: `decode.take` or, with scores of its slots that are inf
for chosen rounds and -inf for others, `decode.attend_top(q, cache, scores, room)`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import masks, mods
from attnjax.core.blocks import select
from attnjax.core.numerics import finite, wide
from attnjax.core.pairwise.attend import Impl, attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot
from attnjax.ops.softmax_core.multi_head import multi_head_attention
from attnjax.typing import Array, Bool, Float, Int, K, Out, Q, V

Rounds = Int[Array, "B S"]
Mass = Float[Array, "B R"]


@on_any_mesh
def round_mass(queries: Q, keys: K, rounds: Rounds, *, count: int) -> Mass:
    """The share of attention that each of `count` rounds gets; shares sum to one.

    The queries are the last T of S tokens, those of the current round; rounds say which round each
    key is of, 0 .. count - 1.
    """
    member = jax.nn.one_hot(rounds, count, dtype=wide(keys).dtype)[:, :, None]
    member = jnp.broadcast_to(member, (*keys.shape[:3], count))
    read = attend(finite(queries), finite(keys), member, mask=masks.causal_to_end)
    return read.mean((1, 2))


@on_any_mesh
def chosen_rounds(mass: Mass, share: float) -> Bool[Array, "B R"]:
    """The fewest rounds that reach the share of all mass but that of the first and the last.

    These two are always chosen.
    """
    R = mass.shape[1]
    always = (np.arange(R) == 0) | (np.arange(R) == R - 1)
    rows = jnp.where(jnp.asarray(always)[None], jnp.inf, mass)[:, None, None]
    return select.top_p(rows, share, block_k=1).dense(R)[:, 0, 0]


@of_whole_text
@on_any_mesh
def round_attention(
    q: Q, k: K, v: V, rounds: Rounds, chosen: Bool[Array, "B R"], *, impl: Impl = None
) -> Out:
    """Attention of the last T tokens to those of chosen rounds up to themselves.

    The work is that of all keys: see above for less.
    """
    seen = jnp.take_along_axis(chosen, rounds, axis=1)
    away = jnp.where(seen, 0.0, -jnp.inf).astype(wide(k).dtype)[..., None]
    away = jnp.broadcast_to(away, k.shape[:3])
    hide = mods.mod(jnp.add, key=away)
    return attend(q, k, v, mods=(hide,), mask=masks.causal_to_end, impl=impl)


def _rounds(slot: Slot) -> np.ndarray:
    """Three rounds; the second example's begin one token earlier."""
    B, S = (slot.sizes[x] for x in "BS")
    at = np.arange(S) + np.arange(B)[:, None] % 2
    return np.minimum(at * 3 // max(S, 3), 2).astype(np.int32)


def _some(slot: Slot) -> np.ndarray:
    """The first example reads the second round, too."""
    chosen = np.ones((slot.sizes["B"], 3), bool)
    chosen[1::2, 1] = False
    return chosen


def _all(slot: Slot) -> np.ndarray:
    return np.ones((slot.sizes["B"], 3), bool)


def _causal_to_end(q: Q, k: K, v: V) -> Out:
    return multi_head_attention(q, k, v, mask=masks.causal_to_end)


OPS = (
    Op(
        round_mass,
        papers=(67,),
        sizes={"T": 4, "R": 3},
        draw={"rounds": Draw(_rounds), "count": 3},
    ),
    Op(
        round_attention,
        papers=(67,),
        reads="past",
        sizes={"R": 3},
        draw={"rounds": Draw(_rounds), "chosen": Draw(_some)},
        limits=(Limit("all rounds: causal attention", {"chosen": Draw(_all)}, _causal_to_end),),
        exempt={"vmap": "the law cuts arrays of floats alone into examples"},
    ),
)
