"""Linear attention takes the same time a token at every length, forward and backward.

    python -m experiments.cost.linear_cost

  Qin et al. 2024, "Lightning Attention-2", arXiv:2401.04658, and "Various Lengths, Constant Speed",
      arXiv:2405.17381: attention in chunks keeps a constant speed at any length, with fixed memory
      for states.  The other targets are this project's own.

Attention whose state decays by a number of each token and head, float32: as `linear_attend` chooses
on this machine, in chunks, and as the recurrent scan, whose derivative JAX takes; causal softmax
attention blockwise beside them.  "crossover" is the length from which softmax takes longer, nan
where that is not between two measured lengths.  "peak MB" is what one forward + backward adds to a
fresh process.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from attnjax import attend, lab, linear_attend, masks
from attnjax.lab import Cell, Claim, Need, above, below, between, of, timing
from attnjax.lab.timing import BOTH, FORWARD, Timed

PAPERS = (10, 139)

MODES = (FORWARD, BOTH)
IMPLEMENTATIONS = {"linear": None, "chunked": "chunked", "recurrent": "recurrent"}


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    lengths: tuple[int, ...] = (256, 1024, 4096, 65536)
    heads: int = 8
    width: int = 64  # of a head
    others_up_to: int = 4096  # softmax, and the scan, whose derivative keeps every state
    memory_length: int = 4096
    memory_heads: int = 4
    results: Path = Path("results/linear_cost")

    def __post_init__(self):
        super().__post_init__()
        if len(self.lengths) < 3 or min(self.lengths) < 1:
            raise lab.UserError(f"lengths: got {self.lengths}, expected three at least, above 0")
        if sum(T <= self.others_up_to for T in self.lengths) < 2:
            raise lab.UserError(
                f"others_up_to: got {self.others_up_to}, expected two lengths of {self.lengths}"
            )


QUICK = replace(
    Config(), lengths=(64, 128, 256), heads=4, others_up_to=128, rounds=3, memory_length=128
)  # fmt: skip


def timed(c: Config, name: str, T: int, mode: str) -> Timed:
    keys = jax.random.split(jax.random.key(T), 3)
    q, k, v = (jax.random.normal(key, (1, T, c.heads, c.width)) for key in keys)
    if name == "softmax":
        fn = partial(attend, mask=masks.causal, impl="blockwise")
        return timing.timed(fn, (q, k, v), mode)
    impl = IMPLEMENTATIONS[name]
    fn = lambda q, k, v, decay: linear_attend(q, k, v, log_decay=decay, impl=impl)
    return timing.timed(fn, (q, k / c.width, v, jax.nn.log_sigmoid(3 + q[..., 0])), mode)


def cells(c: Config) -> list[Cell]:
    rows = lambda T: {
        f"{name} {mode}": partial(timed, c, name, T, mode)
        for name in (*IMPLEMENTATIONS, "softmax")
        for mode in MODES
        if name == "linear" or T <= c.others_up_to
    }
    return [Cell(T, rows(T)) for T in c.lengths]


def growth(c: Config, seconds: timing.Rows) -> lab.Metrics:
    """Microseconds of a token at each length, and from where softmax takes longer."""
    table: lab.Metrics = {}
    for row, each in seconds.items():
        table[row] = {f"us a token, T={T}": 1e6 * x / T for T, x in each.items()}
        name, _, mode = row.rpartition(" ")
        if name == "linear":
            table[row]["crossover"] = timing.crossover(each, seconds[f"softmax {mode}"])
    return table


def memory(c: Config) -> timing.Once:
    small = replace(c, heads=c.memory_heads)
    return {
        (f"{name}, N={small.heads}, T={c.memory_length}", "peak MB"): partial(peak, small, name)
        for name in ("linear", "recurrent")
    }


def peak(c: Config, name: str) -> float:
    return timing.peak_memory(timed, c, name, c.memory_length, BOTH) / 1e6


def claims(c: Config) -> tuple[Claim, ...]:
    start, *_, full = sorted(c.lengths)
    shared = max(T for T in c.lengths if T <= c.others_up_to)
    slower = lambda name, low, high: (
        of(name, f"us a token, T={high}") / of(name, f"us a token, T={low}")
    )
    at = f"T={shared}"
    scan = lambda name, mode: of(f"recurrent {mode}", at) / of(f"{name} {mode}", at)
    told = []
    for mode in MODES:
        square = Need("a token of softmax attention takes longer",
                      slower(f"softmax {mode}", start, shared), above(2))  # fmt: skip
        told.append(
            Claim(f"{mode}: the time of a token is the same, T={shared} to {full}", "constant",
                  slower(f"linear {mode}", shared, full), between(1 / 1.3, 1.3), (square,))
        )  # fmt: skip
    other = Need("chunks are slower", scan("chunked", FORWARD), below(0.8))
    ours, theirs = (of(row, measure) for row, measure in memory(c))
    return (
        *told,
        Claim(f"{FORWARD} at {at}: what is chosen is as fast as the scan", "target",
              scan("linear", FORWARD), above(0.95), (other,)),
        Claim(f"{FORWARD} at {at}: chunks are faster than the scan", "target",
              scan("chunked", FORWARD), above(1.1)),
        Claim(f"{BOTH} at {at}: 15 times as fast as the derivative of the scan", "target",
              scan("linear", BOTH), above(15)),
        Claim(f"{BOTH}: half the memory of all states", "target", ours / theirs, below(0.5)),
    )  # fmt: skip


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Timing(cells, growth, memory), claims)

if __name__ == "__main__":
    STUDY.main()
