"""Needles in real text: what attention over selected blocks finds, at training length and beyond.

    python -m experiments.needle            # two CPU cores: about 90 minutes
    python -m experiments.needle --quick    # two CPU cores: about a minute; what CI runs

  Lu et al. 2025, "MoBA", arXiv:2502.13189: tracks full attention's language-model loss within 1e-3
      at up to 81 % sparsity, and layers can be switched to full attention at any time.
  Mohtashami and Jaggi 2023, "Landmark Attention", arXiv:2305.16300: as good while few blocks are
      retrieved, and finds a passkey well beyond the training length.
  Gao et al. 2024, "SeerAttention", arXiv:2410.13276: a learned gate recalls more of the attention
      at equal sparsity than pooled keys or fixed patterns, at little loss.
  Yuan et al. 2025, "Native Sparse Attention", arXiv:2502.11089: matches full attention's loss.
  Willette et al. 2025, "Delta Attention", arXiv:2505.11254: every gamma-th row computed densely
      corrects a sparse window's outputs, and retrieval, without training.

A sequence is text of Python's standard library in which some tokens are needles, one token for a
pair of a key and a value; at its end keys are asked for, and each answer is the value. Models are
trained on next-token prediction of the text plus, with equal weight, of the answers; "text" is the
loss on held-out text (nats per byte), "found" the share of right answers, also on sequences several
times as long, with as many needles. "recall" is the share of the full model's attention in the
blocks selected by a gate, by pooled keys (as MoBA selects), by a window with sinks, or by an
oracle, as many for each. All models have rotary positions and the same sizes.
"""

import functools
import itertools
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import Selection, lab, masks, select
from attnjax.core.positions import rotary
from attnjax.lab import Claim, above, below
from attnjax.nn import NativeSparse, SeerGate
from attnjax.ops.kv_decode import sink_window_attention
from attnjax.ops.softmax_core import multi_head_attention
from attnjax.ops.sparse_select import (
    Branches,
    delta_attention,
    insert_landmarks,
    landmark_attention,
    landmark_retrieval,
    moba,
    moba_blocks,
    native_sparse_attention,
    remove_landmarks,
)
from attnjax.probes import best_selection, selection_recall

PAPERS = (103, 138, 214, 248, 281)

BYTES = 256
BASE = 10000.0  # of rotary positions


@dataclass(frozen=True)
class Config:
    """Sizes of the models and of the task; the defaults are the full run."""

    methods: tuple[str, ...] = ("full", "moba", "moba then full", "nsa", "landmark")
    seeds: int = 2
    steps: int = 2000
    batch: int = 16
    width: int = 64
    depth: int = 2
    heads: int = 4
    length: int = 256  # of training sequences
    times: tuple[int, ...] = (1, 2, 4)  # judged at so many times the length
    block: int = 16  # keys of a block
    top_k: int = 4  # blocks of these
    needles: int = 4  # in a sequence
    keys: int = 8
    values: int = 8
    gamma: int = 16  # of delta attention
    learning_rate: float = 3e-3
    judged: int = 64  # validation sequences
    text: Path | None = None  # a file or a folder; default: Python's standard library
    results: Path = Path("results/needle")

    def __post_init__(self):
        lab.positive(
            self, "seeds steps batch width depth heads length block top_k needles keys values "
            "gamma judged",
        )  # fmt: skip
        lab.choose("methods", self.methods, METHODS)
        if "full" not in self.methods:
            raise lab.UserError(f"methods: got {' '.join(self.methods)}, expected full among them")
        if self.needles > self.keys:
            raise lab.UserError(f"needles: got {self.needles}, expected at most keys {self.keys}")
        if not self.times or min(self.times) != 1:
            raise lab.UserError(f"times: got {self.times}, expected 1 and larger ones")
        if self.length % self.block or self.top_k * self.block > self.length or self.top_k < 3:
            raise lab.UserError(
                f"block, top_k: got {self.block}, {self.top_k}, expected a divisor of length "
                f"{self.length}, and from 3 blocks to all"
            )
        if 4 * self.needles > self.length:
            raise lab.UserError(f"length: got {self.length}, expected 4 needles' at least")

    @property
    def landmark(self) -> int:
        """The token behind each block; the last of the vocabulary."""
        return BYTES + self.keys * self.values + self.keys + self.values


# ----------------------------------------------------------------------------------- the task


def sequences(config: Config, text: np.ndarray, seed: int, step: int) -> tuple[np.ndarray, ...]:
    """Tokens (B,T + 1), and which of the T predictions are of text and which are answers.

    text (B,T + 1) are bytes; needles take the place of some, questions and answers of the last.
    """
    draw = np.random.default_rng((seed, step, text.shape[1]))
    tokens, (B, length), n = text.copy(), text.shape, config.needles
    start = length - 2 * n
    key = draw.random((B, config.keys)).argsort(1)[:, :n]
    value = draw.integers(0, config.values, (B, n))
    place = draw.random((B, start - 1)).argsort(1)[:, :n] + 1
    np.put_along_axis(tokens, place, BYTES + key * config.values + value, 1)
    asked = draw.permuted(np.broadcast_to(np.arange(n), (B, n)), axis=1)
    first = BYTES + config.keys * config.values
    tokens[:, start::2] = first + np.take_along_axis(key, asked, 1)
    tokens[:, start + 1 :: 2] = first + config.keys + np.take_along_axis(value, asked, 1)
    plain = tokens[:, 1:] < BYTES
    answers = tokens[:, 1:] >= first + config.keys
    return tokens, plain, answers


def scores(model: Callable, batch: Any) -> dict[str, jax.Array]:
    """Loss on text and on answers in nats, and the share of answers that are right."""
    tokens, plain, answers = batch
    logits = model(tokens[:, :-1])
    losses = lab.cross_entropy(logits, tokens[:, 1:])
    right = logits.argmax(-1) == tokens[:, 1:]
    over = lambda x, where: (x * where).sum() / where.sum()
    return {
        "text": over(losses, plain), "answers": over(losses, answers), "found": over(right, answers)
    }  # fmt: skip


# ------------------------------------------------------------------------------ the mechanisms


def turned(x: jax.Array, places: Any = None) -> jax.Array:
    """x (B,T,N,H) with rotary positions 0, 1, 2, ... or those given."""
    places = np.arange(x.shape[1]) if places is None else places
    return rotary(x, places, BASE).astype(x.dtype)


def by_place(op: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """op over q and k with rotary positions."""
    return lambda q, k, v: op(turned(q), turned(k), v)


def full(config: Config) -> Callable[..., jax.Array]:
    return by_place(functools.partial(multi_head_attention, mask=masks.causal))


def with_moba(config: Config) -> lab.Mixer:
    return by_place(functools.partial(moba, block_size=config.block, top_k=config.top_k))


def with_nsa(config: Config) -> lab.Mixer:
    """Compression in runs of half a block, blocks as the others', and a window of one block."""
    half = config.block // 2
    branches = Branches(half, half // 2, config.block, config.top_k, config.block)

    def op(q, k, v, gates, *, compressed, local):
        runs, values = compressed
        ends = np.arange(runs.shape[1]) * branches.stride + branches.length - 1
        return native_sparse_attention(
            turned(q), turned(k), v, gates, branches=branches,
            compressed=(turned(runs, ends), values), local=(turned(local[0]), local[1]),
        )  # fmt: skip

    def make(width: int, heads: int, **rest: Any) -> NativeSparse:
        layer = NativeSparse(width, heads, branches=branches, **rest)
        layer.op = op
        return layer

    return lab.Layer(make)


def with_landmarks(config: Config) -> lab.Mixer:
    return by_place(functools.partial(landmark_attention, block=config.block - 1))


def retrieving(config: Config) -> lab.Mixer:
    """The own block and so many earlier ones, at distances that training has shown."""
    return functools.partial(
        landmark_retrieval, block=config.block - 1, top_k=config.top_k - 1, base=BASE
    )


def windowed(config: Config) -> Callable[..., jax.Array]:
    """As many keys as the others have in their blocks: the first block's, and the latest."""
    kept = config.block, (config.top_k - 1) * config.block
    return functools.partial(sink_window_attention, sinks=kept[0], window=kept[1])


def corrected(config: Config) -> lab.Mixer:
    # no more dense queries than the comparison grants the others
    few = functools.partial(delta_attention, sparse=windowed(config), dense_last=0)
    return by_place(functools.partial(few, gamma=config.gamma))


@dataclass(frozen=True)
class Method:
    """What is trained, what takes over at half of the steps, and what it is judged with.

    also    the mixers with which the trained parameters are judged besides, by the name of the row
    after   more rows of the trained parameters, (setup, parameters, seed) -> rows
    """

    mixer: Callable[[Config], lab.Mixer]
    then: Callable[[Config], lab.Mixer] | None = None
    judged: Callable[[Config], lab.Mixer] | None = None
    landmarks: bool = False
    also: Mapping[str, Callable[[Config], lab.Mixer]] = field(default_factory=dict)
    after: Callable[["Setup", Any, int], lab.Metrics] | None = None


@dataclass(frozen=True)
class Setup:
    """What all runs share: where they are kept, their batches, what they are judged on."""

    config: Config
    runs: Path
    text: lab.Text
    judges: dict[int, Any]  # times the length -> sequences
    watch_gates: Callable[[int], Any]

    def batches(self, seed: int) -> Callable[[int], tuple[Any, ...]]:
        """step -> (sequences ..., step)."""
        c = self.config

        def batch(step: int) -> tuple[Any, ...]:
            drawn = lab.windows(self.text.train, c.length, c.batch, seed=seed, step=step)
            return (*sequences(c, drawn, seed, step), np.int32(step))

        return batch


def with_gates(setup: Setup, params: Any, seed: int) -> lab.Metrics:
    """Rows of the trained full model with gates and other sparse attention, trained no further."""
    gates = train_gates(setup, params, seed)
    return untrained(setup.config, params, gates, setup.judges)


METHODS = {
    "full": Method(full, after=with_gates),
    "moba": Method(with_moba, also={"moba, judged as full": full}),
    "moba then full": Method(with_moba, then=full),
    "nsa": Method(with_nsa),
    "landmark": Method(with_landmarks, judged=retrieving, landmarks=True),
}

QUICK = replace(
    Config(), methods=("full", "moba", "landmark"), seeds=1, steps=60, batch=4, width=32, heads=2,
    length=64, times=(1, 2), block=8, top_k=3, needles=2, keys=4, values=4, judged=8,
)  # fmt: skip


def network(config: Config, mixer: Any, seed: int) -> tuple[Any, Any]:
    """(graph, parameters) of a TinyLM around the mixer, or the mixers of its blocks."""
    shape = lab.Shape(config.width, config.depth, config.heads, positions="none")
    vocabulary = config.landmark + 1
    return nnx.split(lab.TinyLM(shape, mixer, vocab=vocabulary, rngs=nnx.Rngs(seed)))


def logits_of(config: Config, graph: Any, params: Any, marked: bool, tokens: jax.Array):
    """Logits of the tokens, which the model sees with a landmark behind each block if `marked`."""
    every = config.block - 1
    seen = insert_landmarks(tokens, every, config.landmark) if marked else tokens
    logits = nnx.merge(graph, params)(seen)[0]
    return remove_landmarks(logits, every) if marked else logits


def learner(config: Config, method: Method) -> Callable[[Any, Any], jax.Array]:
    """The loss of parameters on a batch (step, sequences)."""
    graphs = [
        network(config, mixer(config), 0)[0] for mixer in (method.mixer, method.then) if mixer
    ]

    def loss(graph: Any, params: Any, batch: Any) -> jax.Array:
        found = scores(functools.partial(logits_of, config, graph, params, method.landmarks), batch)
        return found["text"] + found["answers"]

    def chosen(params: Any, batch: Any) -> jax.Array:
        *batch, step = batch
        if len(graphs) == 1:
            return loss(graphs[0], params, batch)
        first, second = (functools.partial(loss, graph) for graph in graphs)
        return jax.lax.cond(step < config.steps // 2, first, second, params, tuple(batch))

    return chosen


# ----------------------------------------------------------------------------------- the runs


@dataclass(eq=False)
class Result:
    """Metrics of each seed: name -> measure -> value; training losses by method."""

    seeds: list[lab.Metrics]
    losses: dict[str, list[np.ndarray]] = field(default_factory=dict)


def run(config: Config) -> Result:
    """Trains every method with every seed and judges it; goes on where it was interrupted."""
    text = lab.read_text(config.text)
    decides = replace(
        config, results=Path(), methods=("full",), seeds=1, judged=1, times=(1,), gamma=1
    )
    key = lab.run_key(decides, text.digest)
    runs = lab.results_folder(config.results) / "checkpoints" / key
    result = Result([{} for _ in range(config.seeds)])
    methods = lab.choose("methods", config.methods, METHODS)
    with lab.Bars() as bars:
        watches = {name: bars.add(name, config.steps, config.seeds) for name in methods}
        gates = bars.add("seer's gates", config.steps // 2, config.seeds)
        setup = Setup(config, runs, text, judged_sequences(config, text), gates)
        for seed, (name, method) in itertools.product(range(config.seeds), methods.items()):
            trained = train(setup, name, method, seed, watches[name](seed))
            result.losses.setdefault(name, []).append(trained.losses)
            result.seeds[seed] |= rows_of(setup, name, method, trained, seed)
    return result


def judged_sequences(config: Config, text: lab.Text) -> dict[int, Any]:
    """Of each length that is judged."""
    cut = lambda times: lab.evenly(text.validation, times * config.length, config.judged)
    return {times: sequences(config, cut(times), 1_000_003, times) for times in config.times}


def train(setup: Setup, name: str, method: Method, seed: int, watch: Any) -> lab.Run:
    config = setup.config
    _, params = network(config, method.mixer(config), seed)
    optimizer = lab.Optimizer(config.steps, config.learning_rate, weight_decay=0.1)
    return lab.train(
        params,
        learner(config, method),
        setup.batches(seed),
        optimizer,
        folder=setup.runs / f"{name}-{seed}",
        watch=watch,
    )


def rows_of(setup: Setup, name: str, method: Method, trained: lab.Run, seed: int) -> lab.Metrics:
    """All that a trained method is judged by: its own row, and those besides."""
    config, params = setup.config, trained.params
    own = method.judged or method.then or method.mixer
    rows = {
        row: judge(config, mixer(config), params, method.landmarks, setup.judges)
        for row, mixer in {name: own, **method.also}.items()
    }
    if method.then:
        half, few = config.steps // 2, max(1, config.steps // 50)
        before, behind = trained.losses[:half], trained.losses[half:]
        rows[name]["jump"] = float(behind[:few].mean() - before[-few:].mean())
    return rows if method.after is None else rows | method.after(setup, params, seed)


def judge(
    config: Config, mixer: Any, params: Any, marked: bool, judges: dict[int, Any]
) -> dict[str, float]:
    """Loss on text and share of answers found, at each length."""
    graph, _ = network(config, mixer, 0)
    row: dict[str, float] = {}
    for times, batch in judges.items():
        look = jax.jit(
            lambda params, batch: scores(
                functools.partial(logits_of, config, graph, params, marked), batch
            )
        )
        found = look(params, batch)
        if times == 1:
            row["text"] = float(found["text"])
        row[f"found, {times}x"] = float(found["found"])
    return row


# ------------------------------------------- what is done to the trained full model afterwards


def train_gates(setup: Setup, params: Any, seed: int) -> list[SeerGate]:
    """A gate for each layer, trained by distillation from the frozen model's attention."""
    config = setup.config
    graph, _ = network(config, full(config), seed)
    choose = functools.partial(select.top_k, k=config.top_k)

    def make(layer: int) -> SeerGate:
        return SeerGate(
            config.heads,
            config.width // config.heads,
            gate_width=16,
            rngs=nnx.Rngs(1000 + layer),
            blocks=(1, config.block),
            choose=choose,
        )

    gates, start = nnx.split([make(layer) for layer in range(config.depth)])

    def loss(weights: Any, batch: Any) -> jax.Array:
        seen = nnx.merge(graph, params)(batch[0][:, :-1])[1]
        each = nnx.merge(gates, weights)
        losses = [gate.loss(q, k) for gate, q, k in zip(each, seen["q"], seen["k"], strict=True)]
        return jnp.stack(losses).sum()

    steps = max(1, config.steps // 2)
    trained = lab.train(
        start,
        loss,
        setup.batches(seed),
        lab.Optimizer(steps, config.learning_rate),
        folder=setup.runs / f"gates-{seed}",
        watch=setup.watch_gates(seed),
    )
    return nnx.merge(gates, trained.params)


def untrained(
    config: Config, params: Any, gates: list[SeerGate], judges: dict[int, Any]
) -> lab.Metrics:
    """The full model judged with sparse attention in place of its own; recall of selections."""
    ops = {
        "full as seer": [lambda q, k, v, gate=gate: gate(q, k, v) for gate in gates],
        "full as window": by_place(windowed(config)),
        "full as delta": corrected(config),
    }
    rows = {name: judge(config, op, params, False, judges) for name, op in ops.items()}
    tokens = jnp.asarray(judges[1][0][:, :-1])
    graph, _ = network(config, full(config), 0)
    seen = jax.jit(lambda params: nnx.merge(graph, params)(tokens)[1])(params)
    U, n = tokens.shape[1], -(-tokens.shape[1] // config.block)
    selectors = {
        "full as seer": lambda layer, q, k: gates[layer].selection(q, k),
        "pooled keys": lambda layer, q, k: moba_blocks(
            turned(q), turned(k), config.block, config.top_k
        ),
        "full as window": lambda layer, q, k: latest(config, len(q), U, n),
        "oracle": lambda layer, q, k: best_selection(
            turned(q), turned(k), config.top_k, block_q=1, block_k=config.block, mask=masks.causal
        ),
    }
    for name, selector in selectors.items():

        def recall(layer: int, q: jax.Array, k: jax.Array, selector: Any = selector) -> jax.Array:
            chosen = selector(layer, q, k)
            return selection_recall(turned(q), turned(k), chosen, mask=masks.causal).mean()

        each = [
            float(jax.jit(recall, static_argnums=0)(layer, seen["q"][layer], seen["k"][layer]))
            for layer in range(config.depth)
        ]
        rows.setdefault(name, {})["recall"] = float(np.mean(each))
    for name in ("full as window", "full as delta"):
        rows[name]["cosine"] = cosine(ops[name], full(config), seen)
    return rows


def latest(config: Config, B: int, U: int, n: int) -> Selection:
    """The first block, the query's own, and those before it."""
    block = np.arange(n)
    age = (np.arange(U) // config.block)[:, None] - block
    score = np.where(block == 0, np.inf, np.where(age < 0, -np.inf, -age))[:, None]
    scores = jnp.broadcast_to(jnp.asarray(score, jnp.float32), (B, U, 1, n))
    return select.top_k(scores, config.top_k, block_k=config.block)


def cosine(op: Callable, truth: Callable, seen: dict[str, jax.Array]) -> float:
    """The mean cosine of an op's outputs and full attention's, over layers, tokens and heads."""

    def of_layer(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        a, b = op(q, k, v), truth(q, k, v)
        norm = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
        return ((a * b).sum(-1) / norm).mean()

    each = [jax.jit(of_layer)(*x) for x in zip(seen["q"], seen["k"], seen["v"], strict=True)]
    return float(np.mean(each))


# --------------------------------------------------------------------------------- what it says


def claims(config: Config) -> list[Claim]:
    """At the training length, where nothing else is said."""
    told = []
    longest = f"found, {max(config.times)}x"

    def gap(what: str, words: str, more: str, less: str, column: str, criterion: Any) -> None:
        needed = {"full", "moba", "landmark", "nsa", "moba then full"} & {more, less}
        if needed <= set(config.methods):
            measure = lambda m: m[more][column] - m[less][column]
            told.append(Claim(f"{what}: {more} - {less}", words, measure, criterion))

    gap("248: loss on text", "within 1e-3", "moba", "full", "text", below(0.03))
    gap("248: needles found", "-", "moba", "full", "found, 1x", above(-0.1))
    if "moba" in config.methods:
        gap("248: loss on text, switched untrained", "seamless", "moba, judged as full", "moba",
            "text", below(0.03))  # fmt: skip
    if "moba then full" in config.methods:
        jump = lambda m: m["moba then full"]["jump"]
        told.append(Claim("248: training loss after the switch - before", "no jump", jump,
                          below(0.05)))  # fmt: skip
    gap("281: loss on text", "parity", "landmark", "full", "text", below(0.05))
    gap(f"281: {longest}", "works", "landmark", "full", longest, above(-0.1))
    gap("214: loss on text", "matches", "nsa", "full", "text", below(0.05))
    gap("214: needles found", "matches", "nsa", "full", "found, 1x", above(-0.1))
    gap("138: recall", "more", "full as seer", "pooled keys", "recall", above(0))
    gap("138: recall", "more", "full as seer", "full as window", "recall", above(0))
    gap("138: loss on text", "minimal", "full as seer", "full", "text", below(0.05))
    gap("103: cosine with full outputs", "higher", "full as delta", "full as window", "cosine",
        above(0))  # fmt: skip
    gap(f"103: {longest}", "+36 points", "full as delta", "full as window", longest, above(0))
    return told


def main(config: Config) -> None:
    """Runs, judges the claims, and writes tables and plots; then checkpoints are not needed."""
    began = time.monotonic()
    result = run(config)
    panels = {f"found, {times}x": f"found at {times} x {config.length}" for times in config.times}
    lab.report(
        __doc__,
        claims(config),
        result.seeds,
        config=config,
        folder=config.results,
        seconds=time.monotonic() - began,
        figures={
            "found": lab.bars(result.seeds, panels | {"recall": "attention recalled"}),
            "loss": lab.loss_curves(result.losses, unit="nats per byte + per answer"),
        },
    )
    shutil.rmtree(config.results / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    lab.run_cli(main, __doc__, Config(), QUICK)
