"""Latte: tokens attend to a few latents, and each latent to the tokens so far.

    p(l|t)   = softmax_l(q_t)                        logits of H latents in the place of q and k
    p(s|l,t) = exp(k_sl) / sum_{u <= t} exp(k_ul)
    o_t      = sum_l p(l|t) sum_{s <= t} p(s|l,t) v_s                        time O(T H D)

Paper: Dolga et al., "Latent Attention for Linear Time Transformers", 2024, arXiv:2402.17512.
Limits: k = 0 gives the mean of the values so far; one latent is a weighted running mean.
Differs: what each latent has read is kept as a mean, S_l <- (1 - g) S_l + g v_t with
g = p(t|l,t), so that nothing overflows; the released code keeps both sums over a running maximum.
In both directions, p(s|l) = softmax_s(k_sl), it is `efficient_attention`, Shen et al.'s.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.numerics import repeat_heads, wide
from attnjax.core.recurrence.linear import Impl, State, linear_attend
from attnjax.core.sharding import of_whole_text, on_any_mesh
from attnjax.op import Limit, Op, fill
from attnjax.ops.linear_recurrent.linear import mean_so_far
from attnjax.typing import Array, Float, Q, TokenK, TokenV


class LatteState(NamedTuple):
    """What each latent has read, a mean of values, and log sum exp(k) of it (B,K,H)."""

    means: State
    log_mass: Float[Array, "B K H"]


@of_whole_text
@on_any_mesh
def latte_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    *,
    state: LatteState | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal; q and k are logits of H latents for each head, not scaled. Decodes in O(H D)."""
    k = wide(k)
    nothing = jnp.full((len(k), *k.shape[2:]), jnp.finfo(k.dtype).min / 4)
    before, means = (nothing, None) if state is None else (state.log_mass, state.means)
    log_mass = jnp.logaddexp(lax.cumlogsumexp(k, axis=1), before[:, None])
    earlier = jnp.concatenate([before[:, None], log_mass[:, :-1]], axis=1)
    logit = k - earlier  # g = sigmoid(logit)
    # where there is no state yet, its decay does not matter
    fade = jnp.where(earlier > nothing[:, None], -jax.nn.softplus(logit), 0.0)
    out, last = linear_attend(
        jax.nn.softmax(wide(q), axis=-1),
        jax.nn.sigmoid(logit),
        v,
        log_decay=repeat_heads(fade, q),
        state=means,
        return_state=True,
        impl=impl,
    )
    return (out, LatteState(last, log_mass[:, -1])) if return_state else out


OPS = (
    Op(
        latte_attention,
        papers=(156,),
        limits=(Limit("k = 0 gives the mean of the values so far", {"k": fill(0.0)}, mean_so_far),),
    ),
)
