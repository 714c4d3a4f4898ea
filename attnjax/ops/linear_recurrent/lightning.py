"""Lightning attention: linear attention with a fixed decay for each head, block by block.

    o_i = sum_{j <= i} lam^(i - j) (q_i . k_j) v_j
    log lam = -2^(-8 (n + 1)/N) (1 - l/(L - 1 + 1e-5) + 1e-5)
    gated    rms(o) * gate, with phi(q), phi(k) for q, k,    rms(x) = x / sqrt(mean(x^2))

for head n of N in layer l of L, both from 0.

A block of tokens is multiplied at once and a state carried between blocks: the engine's chunks.

Paper: Qin et al., "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning
Attention", 2024, arXiv:2405.17381; Qin et al., "Lightning Attention-2: A Free Lunch for Handling
Unlimited Sequence Lengths in Large Language Models", 2024, arXiv:2401.04658; code:
OpenNLPLab/lightning-attention, and MiniMax's layers in transformers.
Limits: lam = 1 is linear attention without a normalizer.
Differs: the paper prints log lam = -(8n/N) (1 - l/L), `lightning_printed_log_decays` here, by which
most heads forget within a token or two; MiniMax has the numbers above, and the repository the same
but for the 1e-5 in the denominator, and, where N is no power of two, slopes as in
`mods.alibi_slopes`. LRPE, which rotates q and k in the first layer, is left to the caller, as are
the released layer's silu of v and sigmoid of the gate.
"""

from typing import Any

import jax
import jax.numpy as jnp

from attnjax.core.features import FeatureMap
from attnjax.core.numerics import rms_norm, wide
from attnjax.core.recurrence.linear import Documents, Impl, State, linear_attend
from attnjax.op import Limit, Op, fill, uniform
from attnjax.ops.linear_recurrent.linear import plain_sums
from attnjax.typing import Out, PerHead, Q, TokenK, TokenV


def lightning_log_decays(heads: int, layer: int, layers: int) -> PerHead:
    """log(lam) of released models, heads n = 0 .. heads - 1; the last layer hardly forgets."""
    slopes = 2.0 ** (-8.0 / heads * jnp.arange(1, heads + 1))
    return -slopes * (1.0 - layer / (layers - 1 + 1e-5) + 1e-5)


def lightning_printed_log_decays(heads: int, layer: int, layers: int) -> PerHead:
    """log(lam) as the paper prints it; head 0 never forgets, nor does the layer after the last."""
    return -8.0 / heads * (1.0 - layer / layers) * jnp.arange(heads)


def lightning_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerHead,
    *,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Causal linear attention with log_decay = log(lam), one number for each head."""
    return linear_attend(
        q,
        k,
        v,
        log_decay=log_decay,
        documents=documents,
        state=state,
        return_state=return_state,
        impl=impl,
    )


def gated_lightning_attention(
    q: Q,
    k: TokenK,
    v: TokenV,
    log_decay: PerHead,
    gate: Out,
    *,
    phi: FeatureMap = jax.nn.silu,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    impl: Impl = None,
) -> Any:
    """Lightning attention of phi(q) and phi(k), its heads normed together, times `gate`."""
    out, last = lightning_attention(
        phi(wide(q)),
        phi(wide(k)),
        wide(v),
        log_decay,
        documents=documents,
        state=state,
        return_state=True,
        impl=impl,
    )
    B, T, N, D = out.shape
    normed = rms_norm(out.reshape(B, T, N * D)).reshape(out.shape)
    out = (normed * wide(gate)).astype(v.dtype)
    return (out, last) if return_state else out


_DRAWN = {"log_decay": uniform(-1.0, -0.01)}

OPS = (
    Op(
        lightning_attention,
        papers=(10, 139),
        draw=_DRAWN,
        limits=(
            Limit(
                "lam = 1 is linear attention without a normalizer",
                {"log_decay": fill(0.0)},
                plain_sums,
            ),
        ),
    ),
    Op(gated_lightning_attention, papers=(10, 139), draw=_DRAWN),
)
