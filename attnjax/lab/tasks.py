"""Tasks that experiments share: bytes of text, masked bytes, recall, needles, digits, an argmax.

Each gives `batch(seed, step)` and held-out batches as NumPy arrays, and a score of (model, batch);
an experiment adds arms and steps:

    text = tasks.Bytes.of(config)
    lab.Task(text.batch, tasks.next_byte, text.held, config.steps, arms)
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.lab.data import START, Text, digits, evenly, read_text, windows
from attnjax.lab.models import cross_entropy

HELD = 1_000_003  # the seed of held-out batches of tasks that draw their own
HIDDEN = 1  # stands for a hidden byte; source text has no such control character

Batch = tuple[np.ndarray, ...]
Scores = dict[str, jax.Array]


def share(x: jax.Array, where: jax.Array) -> jax.Array:
    """The mean of x where it counts."""
    return jnp.where(where, x, 0).sum() / where.sum()


# ------------------------------------------------------------------------------------------ text


@dataclass(frozen=True, eq=False)
class Bytes:
    """Windows of text: (count, length + 1) tokens opened by START, to predict the next byte."""

    text: Text
    length: int
    count: int
    judged: int

    @classmethod
    def of(cls, config: Any) -> "Bytes":
        """From the settings `text`, `length`, `batch` and `judged`."""
        return cls(read_text(config.text), config.length, config.batch, config.judged)

    def batch(self, seed: int, step: int) -> Batch:
        return (windows(self.text.train, self.length, self.count, seed=seed, step=step),)

    @property
    def held(self) -> Batch:
        return (evenly(self.text.validation, self.length, self.judged),)

    def masked(self, seed: int, step: int) -> Batch:
        """(tokens with a seventh of them hidden, tokens, where they were hidden)."""
        return _hide(self.batch(seed, step)[0][:, 1:], seed, step)

    @property
    def held_masked(self) -> Batch:
        return _hide(self.held[0][:, 1:], HELD, 0)


def _hide(tokens: np.ndarray, seed: int, step: int) -> Batch:
    hidden = np.random.default_rng((seed, step, 1)).random(tokens.shape) < 1 / 7
    return np.where(hidden, np.int32(HIDDEN), tokens), tokens, hidden


def next_byte(model: Any, batch: Any) -> Scores:
    """Nats per byte of next-byte prediction."""
    (tokens,) = batch
    return {"nats": cross_entropy(model(tokens[:, :-1])[0], tokens[:, 1:]).mean()}


def hidden_byte(model: Any, batch: Any) -> Scores:
    """Nats per hidden byte."""
    shown, tokens, hidden = batch
    return {"nats": share(cross_entropy(model(shown)[0], tokens), hidden)}


# ------------------------------------------------------------------------------- what is asked for


def answers(model: Any, batch: Any) -> Scores:
    """Loss and accuracy at the asked places; a batch is (tokens, answers, asked), each (B,T)."""
    tokens, wanted, asked = batch
    logits = model(tokens)[0]
    right = logits.argmax(-1) == wanted
    return {"nats": share(cross_entropy(logits, wanted), asked), "accuracy": share(right, asked)}


def argmax(count: int, places: int, values: int) -> Callable[[int, int], Batch]:
    """Distinct random tokens and a question; the answer is the place of the largest token.

    The question is a token of its own, `values`: were the last token asked, it would know when it
    is the largest itself, and attention that sees no order would do better than chance.
    """

    def batch(seed: int, step: int) -> Batch:
        draw = np.random.default_rng((seed, step))
        tokens = draw.random((count, values)).argsort(1)[:, :places].astype(np.int32)
        asked = np.pad(tokens, ((0, 0), (0, 1)), constant_values=values)
        wanted = np.zeros_like(asked)
        wanted[:, -1] = tokens.argmax(1)
        return asked, wanted, np.arange(places + 1) == np.full((count, 1), places)

    return batch


def recall(count: int, pairs: int, length: int, keys: int) -> Callable[[int, int], Batch]:
    """Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927).

    Key, value, key, value ..., then each key once more, in places drawn at random, where its value
    is the answer.  Token 0 fills, keys are 1 .. keys, values the `keys` after them.
    """

    def batch(seed: int, step: int) -> Batch:
        draw = np.random.default_rng((seed, step, pairs, length))
        key = (draw.random((count, keys)).argsort(1)[:, :pairs] + 1).astype(np.int32)
        value = (draw.integers(0, keys, (count, pairs)) + 1 + keys).astype(np.int32)
        tokens = np.zeros((count, length), np.int32)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = key, value
        places = draw.random((count, length - 2 * pairs)).argsort(1)[:, :pairs] + 2 * pairs
        wanted = np.zeros_like(tokens)
        np.put_along_axis(tokens, places, key, 1)
        np.put_along_axis(wanted, places, value, 1)
        return tokens, wanted, wanted > 0

    return batch


def copy(count: int, length: int, values: int) -> Callable[[int, int], Batch]:
    """Random tokens, a separator (`values`), and the same tokens again, which are asked for."""

    def batch(seed: int, step: int) -> Batch:
        tokens = np.random.default_rng((seed, step)).integers(0, values, (count, length))
        bar = np.full((count, 1), values)
        row = np.concatenate([tokens, bar, tokens], axis=1).astype(np.int32)
        asked = np.broadcast_to(np.arange(2 * length) >= length, (count, 2 * length))
        return row[:, :-1], row[:, 1:], asked

    return batch


def together(*draws: Callable[[int, int], Batch]) -> Callable[[int, int], Batch]:
    """One batch of the rows of several."""

    def batch(seed: int, step: int) -> Batch:
        parts = zip(*(draw(seed, step) for draw in draws), strict=True)
        return tuple(np.concatenate(part) for part in parts)

    return batch


# ------------------------------------------------------------------------------------------- sinks


@dataclass(frozen=True, eq=False)
class Backcopy:
    """Bigram-backcopy: a Markov chain of tokens, in which a trigger copies the token before it.

        x_0 = START,  x_{t+1} = x_{t-1} where x_t is a trigger,  else ~ bigrams of x_t

    Only after a trigger must a model look at another token; elsewhere attention has nothing to do,
    and heads that have to spend their weight park it on START.  Tokens are the most frequent bytes
    of the text, most frequent first, whose bigrams are those of the text; triggers are the tokens
    after the first one.  Two triggers never meet.

    Guo et al. 2024, "Active-Dormant Attention Heads", arXiv:2410.13835, section 2.
    """

    text: Text
    length: int
    count: int
    vocabulary: int = 64
    triggers: int = 8

    @functools.cached_property
    def sums(self) -> np.ndarray:
        """Cumulative transition probabilities; row r is raised by r: one search serves a batch."""
        V, trigger = self.vocabulary, self.asks(np.arange(self.vocabulary))
        frequent = np.argsort(-np.bincount(self.text.train, minlength=256), kind="stable")
        token = np.zeros(256, np.int64)
        token[frequent[: V - 1]] = np.arange(1, V)
        tokens = token[self.text.train]
        pairs = np.bincount(tokens[:-1] * V + tokens[1:], minlength=V * V).reshape(V, V)
        chances = pairs.astype(np.float64) + 1e-9  # every row can be normalized
        chances[START] = np.bincount(tokens, minlength=V)
        chances[START, trigger] = 0  # there is nothing before the first token to copy
        chances[:, START] = 0  # rare bytes are skipped
        sums = np.cumsum(chances, axis=1)
        return (sums / sums[:, -1:] + np.arange(V)[:, None]).ravel()

    def asks(self, tokens: Any) -> Any:
        """Where the next token is a copy."""
        return (tokens > 1) & (tokens <= 1 + self.triggers)

    def batch(self, seed: int, step: int) -> Batch:
        """(tokens (count, length + 1),)."""
        draws = np.random.default_rng((seed, step)).random((self.length, self.count))
        tokens = np.zeros((self.length + 1, self.count), np.int32)  # a step writes a row
        for t, draw in enumerate(draws):
            now = tokens[t]
            new = np.searchsorted(self.sums, now + draw, side="right") - now * self.vocabulary
            new = np.minimum(new, self.vocabulary - 1)
            tokens[t + 1] = np.where(self.asks(now), tokens[t - 1], new) if t else new
        return (np.ascontiguousarray(tokens.T),)


# ----------------------------------------------------------------------------------------- needles


@dataclass(frozen=True)
class Needles:
    """Text in which some tokens are needles, and questions for them at the end.

    A needle is one token for a pair of a key and a value; a question is the key's token, and its
    answer the value's.  Bytes are tokens 0 .. 255, then come needles, keys and values.
    """

    needles: int = 4  # in a sequence
    keys: int = 8
    values: int = 8

    @property
    def vocabulary(self) -> int:
        return 256 + self.keys * self.values + self.keys + self.values

    def hide(self, text: np.ndarray, seed: int, step: int) -> Batch:
        """Tokens (B,T + 1); which of the T predictions are of text, and which are answers."""
        draw = np.random.default_rng((seed, step, text.shape[1]))
        tokens, (B, length), n = text.copy(), text.shape, self.needles
        start = length - 2 * n
        key = draw.random((B, self.keys)).argsort(1)[:, :n]
        value = draw.integers(0, self.values, (B, n))
        place = draw.random((B, start - 1)).argsort(1)[:, :n] + 1
        np.put_along_axis(tokens, place, (256 + key * self.values + value).astype(np.int32), 1)
        asked = draw.permuted(np.broadcast_to(np.arange(n), (B, n)), axis=1)
        first = 256 + self.keys * self.values
        tokens[:, start::2] = first + np.take_along_axis(key, asked, 1)
        tokens[:, start + 1 :: 2] = first + self.keys + np.take_along_axis(value, asked, 1)
        return tokens, tokens[:, 1:] < 256, tokens[:, 1:] >= first + self.keys

    def batch(self, text: Bytes) -> Callable[[int, int], Batch]:
        return lambda seed, step: self.hide(text.batch(seed, step)[0], seed, step)

    def held(self, text: Bytes, times: int = 1) -> Batch:
        """Held-out sequences of `times` the length."""
        cut = evenly(text.text.validation, times * text.length, text.judged)
        return self.hide(cut, HELD, times)


def needles(model: Any, batch: Any) -> Scores:
    """Loss on text plus, with equal weight, on answers; both; and the share of right answers."""
    tokens, plain, asked = batch
    logits = model(tokens[:, :-1])[0]
    losses = cross_entropy(logits, tokens[:, 1:])
    text, found = share(losses, plain), share(losses, asked)
    right = share(logits.argmax(-1) == tokens[:, 1:], asked)
    return {"loss": text + found, "text": text, "found": right}


# ------------------------------------------------------------------------------------------ images


def handwriting(count: int) -> tuple[Callable[[int, int], Batch], Batch]:
    """(batch, held) of scikit-learn's digits: images (B,8,8) and labels (B,)."""
    images = digits()

    def batch(seed: int, step: int) -> Batch:
        chosen = np.random.default_rng((seed, step)).integers(0, len(images.train), count)
        return images.train[chosen], images.train_labels[chosen]

    return batch, (images.test, images.test_labels)


def labels(model: Any, batch: Any) -> Scores:
    """Loss and accuracy of a classification."""
    logits = model(batch[0])[0]
    right = (logits.argmax(-1) == batch[1]).mean()
    return {"nats": cross_entropy(logits, batch[1]).mean(), "accuracy": right}
