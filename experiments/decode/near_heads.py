"""Moments of keys tell which queries of which heads have enough in the keys near by.

    python -m experiments.decode.near_heads

  Donhauser et al. 2025, "Unveiling Simplicities of Attention: Adaptive Long-Context Head
      Identification", arXiv:2502.09647: mean and covariance of the keys, those of another text
      included, predict for each query and head whether it attends to near keys alone, close to an
      oracle that sees all keys, and attention to far keys only where it is predicted keeps quality.

Text in which some tokens are needles, which are asked for at the end.  A query is near where the
sinks and the last `window` keys have `tau` of its weight; "agreement" is the mean of the shares of
near and of far queries that are predicted rightly, 0.5 for any answer that is always the same,
"near" the share of queries that are predicted to be near, of those with keys that are not; "text"
and "found" are those of the trained model whose queries see far keys only where told so.  Moments
are those of the text's own keys, those of a text of the training data, or no moments, of which the
number of far keys is left.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import attention_weights, lab, masks
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Arm, Claim, Need, Task, above, below, between, of, tasks
from attnjax.ops.kv_decode import (
    KeyMoments,
    adaptive_head_attention,
    key_moments,
    near_share,
    sink_window_attention,
)

PAPERS = (256,)


@dataclass(frozen=True)
class Config(shared.Config):
    steps: int = 600
    sinks: int = 1
    window: int = 8
    tau: float = 0.6
    results: Path = Path("results/near_heads")


QUICK = replace(Config(), seeds=1, steps=100, width=32, depth=1, length=32, judged=32)


class Adaptive(nnx.Module):
    """Attention to far keys where moments say so: given ones, or those of each text's keys."""

    def __init__(self, c: Config, moments: KeyMoments | None):
        self.c, self.own = c, moments is None
        parts = (jnp.zeros(()),) * 2 if moments is None else moments
        self.mean, self.covariance = (nnx.Variable(x) for x in parts)

    def of(self, k: jax.Array) -> KeyMoments:
        """Moments of each example."""
        if self.own:
            return jax.vmap(lambda one: key_moments(one[None]))(k)
        parts = self.mean[...], self.covariance[...]
        return KeyMoments(*(jnp.broadcast_to(x, (len(k), *x.shape)) for x in parts))

    def share(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """The share of the weights of each query (B,T,N) that near keys have, as estimated."""
        share = functools.partial(near_share, sinks=self.c.sinks, window=self.c.window)
        one = lambda q, k, moments: share(q[None], k[None], moments)[0]
        return jax.vmap(one)(q, k, self.of(k))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        c = self.c
        op = functools.partial(adaptive_head_attention, sinks=c.sinks, window=c.window, tau=c.tau)
        one = lambda q, k, v, moments: op(q[None], k[None], v[None], moments)[0]
        q, k = shared.rotated(q), shared.rotated(k)
        return jax.vmap(one)(q, k, v, self.of(k))


class Beside(nnx.Module):
    """The trained model, and the same with other attention."""

    def __init__(self, full: lab.TinyLM, other: lab.TinyLM):
        self.full, self.other = full, other


def look(c: Config, model: Beside | lab.TinyLM, batch: tasks.Batch) -> tasks.Scores:
    if isinstance(model, lab.TinyLM):
        return tasks.needles(model, batch)
    scores = tasks.needles(model.other, batch)
    layers = [block.attention.attend for block in model.other.stack.blocks]
    if not isinstance(layers[0], Adaptive):
        return scores
    seen = model.full(jnp.asarray(batch[0][:, :-1]))[1]
    said, true = [], []
    for layer, q, k in zip(layers, seen["q"], seen["k"], strict=True):
        q, k = shared.rotated(q), shared.rotated(k)
        weights = attention_weights(q, k, mask=masks.causal)
        kept = masks.window(c.window - 1) | masks.sinks(c.sinks)
        mass = jnp.where(kept.dense(*weights.shape[-2:]), weights, 0).sum(-1)
        far = c.sinks + c.window  # queries before see near keys only
        true.append(mass.swapaxes(1, 2)[:, far:] >= c.tau)
        said.append(layer.share(q, k)[:, far:] >= c.tau)
    said, true = jnp.stack(said), jnp.stack(true)
    right = (tasks.share(said, true) + tasks.share(~said, ~true)) / 2
    return scores | {"agreement": right, "near": said.mean(), "near in truth": true.mean()}


def studied(c: Config) -> dict[str, Task]:
    full = shared.model(c, shared.full)
    text = tasks.Bytes.of(c)
    sample = jnp.asarray(c.needles.batch(text)(10**6, 0)[0][:, :-1])

    def moments(name, trained):
        """Of the keys of each layer, on a batch of the training data."""
        if name == "own text":
            return [None] * c.depth
        found = [key_moments(shared.rotated(k)) for k in trained(sample)[1]["k"]]
        scale = 0.0 if name == "no moments" else 1.0
        return [KeyMoments(m.mean * scale, m.covariance * scale) for m in found]

    def adaptive(name):
        def make(seed, trained):
            layers: list[lab.Mixer] = [Adaptive(c, m) for m in moments(name, trained)]
            other = lab.like(shared.model(c, layers)(seed), trained)
            return Beside(trained, other)

        return Arm(make, "full", steps=0)

    near = shared.by_place(
        lambda q, k, v: sink_window_attention(q, k, v, sinks=c.sinks, window=c.window)
    )
    always = lambda seed, old: Beside(old, lab.like(shared.model(c, near)(seed), old))
    arms = {"full": full, "always near": Arm(always, "full", steps=0)}
    arms |= {name: adaptive(name) for name in ("own text", "other text", "no moments")}
    return {"text": replace(shared.task(c, arms), score=functools.partial(look, c))}


def claims(c: Config) -> tuple[Claim, ...]:
    agrees = lambda arm: of(arm, "agreement")
    found = lambda arm: of("full", "found") - of(arm, "found")
    both = Need("a tenth of the queries at least is near, and a tenth far",
                of("own text", "near in truth"), between(0.1, 0.9))  # fmt: skip
    needed = Need("far keys are needed", found("always near"), above(0.4))
    return (
        *(Claim(f"moments of the {arm} tell near queries from far ones, four of five at least",
                "close to the oracle", agrees(arm), between(0.8, 1.001), (both,))
          for arm in ("own text", "other text")),
        Claim("moments tell more than the number of far keys does", "second moments",
              agrees("other text") - agrees("no moments"), above(0.02), (both,)),
        Claim("with far keys only where predicted as many needles are found", "keeps quality",
              found("other text"), below(0.1), (needed,)),
        Claim("and a third of the queries sees near keys only", "keeps quality",
              of("other text", "near"), between(0.33, 1), (needed,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
