"""A memory that learns by gradient with momentum recalls more than a gated delta rule, and longer.

    python -m experiments.linear.titans

  Behrouz, Zhong and Mirrokni 2024, "Titans: Learning to Memorize at Test Time", arXiv:2501.00663:
      a memory trained on each token, with momentum and forgetting, is more effective than recent
      linear recurrent models, and more accurate on needles in texts longer than training's.

Multi-query associative recall: key-value pairs, then questions for keys, in sequences as long as
those of training and several times as long, with as many pairs.  The memory is a matrix for each
head; without momentum and with another order of forgetting it would be the gated delta rule.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx

from attnjax import lab
from attnjax.lab import Claim, Need, Task, above, below, of, tasks
from attnjax.nn import recipes

PAPERS = (313,)


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 16
    depth: int = 3
    heads: int = 2
    pairs: int = 8
    length: int = 24
    times: int = 4  # judged at so many times the length
    keys: int = 16  # that pairs are drawn from, and as many values
    steps: int = 800
    batch: int = 32
    learning_rate: float = 1e-2
    judged: int = 256
    results: Path = Path("results/titans")

    def __post_init__(self):
        super().__post_init__()
        if self.pairs > self.keys or 3 * self.pairs > self.length:
            raise lab.UserError(
                f"pairs: got {self.pairs}, expected at most keys {self.keys} and a third of length "
                f"{self.length}"
            )


QUICK = replace(Config(), seeds=1, pairs=2, length=12, keys=8, steps=100, depth=1)

ARMS = {
    "gla": recipes.gla,
    "gated delta": recipes.gated_delta_net,
    "titans": recipes.titans,
}


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, positions="none")
    vocabulary = 2 * c.keys + 1

    def model(recipe):
        return lambda seed: lab.TinyLM(shape, recipe, vocab=vocabulary, rngs=nnx.Rngs(seed))

    def held(times):
        return tasks.recall(c.judged, c.pairs, times * c.length, c.keys)(tasks.HELD, 0)

    arms = {name: model(recipe) for name, recipe in ARMS.items()}
    judged = {"": held(1), f"{c.times}x": held(c.times)}
    # Half of the sequences have few pairs, which are learned first.
    drawn = lambda pairs: tasks.recall(-(-c.batch // 2), pairs, c.length, c.keys)
    batch = tasks.together(drawn(-(-c.pairs // 4)), drawn(c.pairs))
    return {"recall": Task(batch, tasks.answers, judged, c.steps, arms, "nats per answer")}


def claims(c: Config) -> tuple[Claim, ...]:
    far = f"accuracy, {c.times}x"
    more = lambda other, measure: of("titans", measure) - of(other, measure)
    lost = lambda name: of(name, "accuracy") - of(name, far)
    return (
        Claim("it recalls more than gated linear attention", "more effective",
              more("gla", "accuracy"), above(0.05)),
        Claim("it recalls more than the gated delta rule", "more effective",
              more("gated delta", "accuracy"), above(0.05)),
        Claim(f"at {c.times} times the length it recalls more than the gated delta rule",
              "more accurate", more("gated delta", far), above(0.05)),
        Claim(f"at {c.times} times the length it loses little", "more accurate", lost("titans"),
              below(0.1),
              (Need("the gated delta rule loses more", lost("gated delta"), above(0.1)),)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
