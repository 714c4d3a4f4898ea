"""A few dimensions rank the keys of a trained model, and one layer's top keys serve the next.

    python -m experiments.decode.trained_keys

  Singhania et al. 2024, "Loki: Low-Rank Keys for Efficient Sparse Attention", arXiv:2406.02542:
      keys lie near a space of far fewer dimensions than the head has, and a quarter of all keys,
      ranked in a quarter of the dimensions, keep the quality of a model.
  Yang et al. 2024, "TidalDecode", arXiv:2410.05076: the keys of largest score of neighboring layers
      overlap strongly, so that one layer may choose for those behind it.

Text in which some tokens are needles, which are asked for at the end.  "dimensions" is the share of
the principal directions of a head's rotated keys that have 90 % of their squares, "overlap" that of
the top keys of a query and head that are top keys of the same head in the layer before, both on
average, and for queries with keys enough.  The trained model is judged with a quarter of the keys
of the text: those ranked in a quarter of the dimensions, principal ones of the keys of another text
("loki") or drawn at random, those that the second layer scores highest ("tidal", in layers behind
it), and the latest.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import attention_scores, lab, masks
from attnjax.experiments.sparse import _needles as shared
from attnjax.lab import Arm, Claim, Need, Task, above, below, of, tasks
from attnjax.ops.kv_decode import key_basis, loki_attention, sink_window_attention, tidal_attention

PAPERS = (280, 179)


@dataclass(frozen=True)
class Config(shared.Config):
    depth: int = 4
    steps: int = 500
    keep: int = 16  # keys
    rank: int = 4  # dimensions of width / heads
    results: Path = Path("results/trained_keys")


QUICK = replace(Config(), seeds=1, steps=100, width=32, depth=2, length=32, judged=32, keep=8,
                rank=2)  # fmt: skip


class Ranked(nnx.Module):
    """Attention to the keys that are largest in the first directions of a basis."""

    def __init__(self, c: Config, basis: jax.Array):
        self.c, self.basis = c, nnx.Variable(basis)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k = shared.rotated(q), shared.rotated(k)
        return loki_attention(q, k, v, self.basis[...], rank=self.c.rank, keep=self.c.keep)


def tidal(c: Config) -> list[lab.Mixer]:
    """Full attention in two layers, of which the second chooses for all behind it."""
    chosen: list[jax.Array] = []  # of the pass that is being traced

    def second(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        chosen[:] = shared.rotated(q), shared.rotated(k)
        return shared.full(q, k, v)

    def behind(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return tidal_attention(shared.rotated(q), shared.rotated(k), v, *chosen, keep=c.keep)

    return [shared.full, second, *[behind] * (c.depth - 2)]


def look(c: Config, model: lab.TinyLM, batch: tasks.Batch) -> tasks.Scores:
    scores = tasks.needles(model, batch)
    seen = model(jnp.asarray(batch[0][:, :-1]))[1]
    q, k = (jax.vmap(shared.rotated)(seen[name]) for name in "qk")
    moments = jnp.einsum("LBTNH,LBTNh->LNHh", k, k)
    sizes = jnp.linalg.eigvalsh(moments)[..., ::-1]
    shares = jnp.cumsum(sizes, -1) / sizes.sum(-1, keepdims=True)
    ranked = jax.vmap(functools.partial(attention_scores, mask=masks.causal))(q, k)
    late = ranked[..., 2 * c.keep :, :]  # queries with more keys than are kept
    top = late >= jax.lax.top_k(late, c.keep)[0][..., -1:]
    return scores | {
        "dimensions": ((shares < 0.9).sum(-1) + 1).mean() / k.shape[-1],
        "overlap": (top[1:] & top[:-1]).sum(-1).mean() / c.keep,
    }


def studied(c: Config) -> dict[str, Task]:
    full = shared.model(c, shared.full)
    text = tasks.Bytes.of(c)
    sample = jnp.asarray(c.needles.batch(text)(10**6, 0)[0][:, :-1])

    def instead(mixers: Callable[[int, lab.TinyLM], Any]) -> Arm:
        make = lambda seed, old: lab.like(shared.model(c, mixers(seed, old))(seed), old)
        return Arm(make, "full", steps=0)

    def principal(seed, old):
        keys = jax.vmap(shared.rotated)(old(sample)[1]["k"])
        return [Ranked(c, key_basis(each)) for each in keys]

    def drawn(seed, old):
        size = (c.depth, c.heads, c.width // c.heads, c.width // c.heads)
        normal = jax.random.normal(jax.random.key(seed), size)
        return [Ranked(c, basis) for basis in jnp.linalg.qr(normal)[0]]

    latest = functools.partial(sink_window_attention, sinks=1, window=c.keep - 1)
    arms = {
        "full": full,
        "untrained": Arm(full, steps=0),
        "loki": instead(principal),
        "random dimensions": instead(drawn),
        "tidal": instead(lambda *_: tidal(c)),
        "latest keys": instead(lambda *_: shared.by_place(latest)),
    }
    return {"text": replace(shared.task(c, arms), score=functools.partial(look, c))}


def claims(c: Config) -> tuple[Claim, ...]:
    loses = lambda arm: of(arm, "loss") - of("full", "loss")
    needed = Need("the latest keys are not enough", loses("latest keys"), above(0.3))
    seen = Need("in random dimensions it loses", loses("random dimensions"), above(0.1))
    return (
        Claim("half of the dimensions have 90 % of a trained head's keys", "few",
              of("full", "dimensions"), below(0.5),
              (Need("an untrained head's are in more",
                    of("untrained", "dimensions") - of("full", "dimensions"), above(0.1)),)),
        Claim("a quarter of the keys, ranked in a quarter of the dimensions, keep quality", "keeps",
              loses("loki"), below(0.1), (seen, needed)),
        Claim("the top keys of neighboring layers overlap, beyond those of an untrained model",
              "strongly", of("full", "overlap") - of("untrained", "overlap"), above(0.2)),
        Claim("one layer's top keys serve all behind it", "nearly full", loses("tidal"),
              below(0.1), (needed,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
