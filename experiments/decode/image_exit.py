"""From the middle of a trained model on, its text needs the image no more.

    python -m experiments.decode.image_exit

  Wu et al. 2024, "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and
      the Empirical Findings", arXiv:2411.19628: what text takes from image tokens it has taken in
      early layers; dropped behind a layer in the middle they hardly change what is predicted,
      dropped early they do.

Scikit-learn's digits in 16 patches of rounded ink as tokens, then a question (which digit, is it
even, is it above four) and a sign to answer at.  The trained model is judged again with all image
tokens hidden from the layers behind the first 0, 1, 2 ... ; nothing is trained for that, and no
router decides, as the paper's does for each input: exits are the same for all.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx

from attnjax import attend, lab, masks
from attnjax.lab import Arm, Claim, Need, Task, above, below, of, tasks

PAPERS = (12,)

PATCHES, LEVELS = 16, 17  # tokens of an image, and levels of ink
QUESTIONS, ANSWER = LEVELS, LEVELS + 3  # three questions, and the sign
ANSWERS = ANSWER + 1  # ten digits, no, yes
VOCABULARY = ANSWERS + 12


@dataclass(frozen=True)
class Config(lab.ModelConfig):
    width: int = 48
    depth: int = 6
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 2e-3
    results: Path = Path("results/image_exit")


QUICK = replace(Config(), seeds=1, depth=2, steps=200, width=32)


def asked(images: np.ndarray, labels: np.ndarray, question: np.ndarray) -> tasks.Batch:
    """(tokens, wanted, where) of images (B,8,8) with ink in [0,1] and questions 0, 1, 2 (B,)."""
    ink = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, PATCHES)
    tokens = np.concatenate(
        [np.round(ink * (LEVELS - 1)), QUESTIONS + question[:, None],
         np.full((len(ink), 1), ANSWER)], axis=1,
    ).astype(np.int32)  # fmt: skip
    told = np.stack([labels, 10 + (labels % 2 == 0), 10 + (labels > 4)])
    wanted = np.zeros_like(tokens)
    wanted[:, -1] = ANSWERS + np.take_along_axis(told, question[None], axis=0)[0]
    return tokens, wanted, wanted > 0


def data(count: int):
    """(batch, held): drawn images with drawn questions, and every test image with all three."""
    images = lab.digits()

    def batch(seed: int, step: int) -> tasks.Batch:
        draw = np.random.default_rng((seed, step))
        chosen = draw.integers(0, len(images.train), count)
        questions = draw.integers(0, 3, count)
        return asked(images.train[chosen], images.train_labels[chosen], questions)

    every = [np.full(len(images.test), n) for n in range(3)]
    tests = (asked(images.test, images.test_labels, question) for question in every)
    return batch, tuple(np.concatenate(part) for part in zip(*tests, strict=True))


def studied(c: Config) -> dict[str, Task]:
    shape = lab.Shape(c.width, c.depth, c.heads, PATCHES + 2)
    seen = functools.partial(attend, mask=masks.causal)
    hidden = functools.partial(attend, mask=masks.causal & ~masks.prefix(PATCHES))

    def model(seed, layers=c.depth):
        mixers = [seen if layer < layers else hidden for layer in range(c.depth)]
        return lab.TinyLM(shape, mixers, vocab=VOCABULARY, rngs=nnx.Rngs(seed))

    def cut(layers):
        return Arm(lambda seed, old: lab.like(model(seed, layers), old), "never", steps=0)

    arms = {"never": model} | {f"after {n}": cut(n) for n in range(c.depth)}
    batch, held = data(c.batch)
    return {"digits": Task(batch, tasks.answers, held, c.steps, arms, "nats per answer")}


def claims(c: Config) -> tuple[Claim, ...]:
    loses = lambda n: of("never", "accuracy") - of(f"after {n}", "accuracy")
    needed = Need("answers need the image", loses(0), above(0.2))
    half = c.depth // 2
    return (
        Claim(f"without the image behind layer {half} of {c.depth} as many answers are right",
              "nearly unchanged", loses(half), below(0.02), (needed,)),
        Claim("without it from the beginning more are wrong", "early does",
              loses(0), above(0.2)),
        Claim("without it behind the first layer more are wrong than behind the middle",
              "early does", of(f"after {half}", "accuracy") - of("after 1", "accuracy"),
              above(0.05), (needed,)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Training(studied), claims)

if __name__ == "__main__":
    STUDY.main()
