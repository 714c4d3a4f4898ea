"""What a model of text loses when its first tokens are evicted, by the kind of attention.

    python -m experiments.sinks.evicted

  Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453:
      softmax needs the first tokens, which it uses as sinks.
  Zhuri et al. 2025, "Softpick", arXiv:2504.20966v1, and Gu et al. 2024, "When Attention Sink
      Emerges in Language Models", arXiv:2410.10781: rectified softmax and sigmoids grow no sink.
  Miller 2023, "Attention Is Off By One": softmax_one; Bondarenko et al. 2023, "Quantizable
      Transformers", arXiv:2306.12929: clipped softmax with gates lets a head do nothing.

Each kind trains a model with all keys.  It is then judged with all of them and in a window of the
latest eighth, which forgets the first tokens and whatever else is far: "evicted" is the loss that
this adds, "4 first" what is left of that when four first tokens are kept beside the window.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx

from attnjax import lab, masks
from attnjax.experiments.sinks.backcopy import mechanisms
from attnjax.lab import Claim, Need, Task, above, below, of, tasks

PAPERS = (355, 247, 141)

FIRST = 4


@dataclass(frozen=True)
class Config(lab.TextConfig):
    depth: int = 4
    length: int = 128
    batch: int = 4
    steps: int = 2000
    results: Path = Path("results/evicted")

    def __post_init__(self):
        super().__post_init__()
        if self.length < 8 * (FIRST + 1):
            raise lab.UserError(f"length: got {self.length}, expected at least {8 * (FIRST + 1)}")


QUICK = replace(Config(), seeds=1, depth=2, steps=200, length=64, judged=32)


def look(model, batch):
    """The loss with all keys, and what fewer add to it."""
    (text,) = batch
    recent = masks.window((text.shape[1] - 1) // 8 - 1)
    layers = [block.attention for block in model.stack.blocks]
    trained = [layer.attend for layer in layers]

    def nats(mask):
        for layer, op in zip(layers, trained, strict=True):
            sees_all = op.keywords["mask"] is masks.causal  # a blind one stays blind
            layer.attend = functools.partial(op, mask=mask) if sees_all else op
        return lab.cross_entropy(model(text[:, :-1])[0], text[:, 1:]).mean()

    whole = nats(masks.causal)
    return {
        "nats": whole,
        "evicted": nats(recent) - whole,
        f"{FIRST} first": nats(recent | (masks.causal & masks.sinks(FIRST))) - whole,
    }


def studied(c):
    text = tasks.Bytes(lab.read_text(c.text), c.length, c.batch, c.judged)
    shape = lab.Shape(c.width, c.depth, c.heads, c.length)

    def model(op, gate):
        return lambda seed: lab.TinyLM(shape, op, gate=gate, vocab=256, rngs=nnx.Rngs(seed))

    arms = {name: model(*made) for name, made in mechanisms(c.length).items()}
    return {"text": Task(text.batch, look, text.held, c.steps, arms, unit="nats per byte")}


def claims(c):
    nats, evicted, kept = (
        functools.partial(of, measure=name) for name in ("nats", "evicted", f"{FIRST} first")
    )
    needs = Need("evicting costs softmax something", evicted("softmax"), above(0.05))
    helps = Need("attention helps", nats("blind") - nats("softmax"), above(0.1))
    back = (evicted("softmax") - kept("softmax")) / evicted("softmax")
    told = [
        Claim("softmax: four first tokens give back a quarter of what a window loses at least",
              "restores", back, above(0.25), (needs,)),
    ]  # fmt: skip
    for arm in ("softpick", "sigmoid", "softmax_one", "clipped, gated"):
        told += [
            Claim(f"{arm}: loses at most half as much when the first tokens are evicted", "no sink",
                  evicted(arm) / evicted("softmax"), below(0.5), (needs,)),
            Claim(f"{arm}: as good as softmax", "parity",
                  nats(arm) - nats("softmax"), below(0.02), (helps,)),
        ]  # fmt: skip
    return told


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
