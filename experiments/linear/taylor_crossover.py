"""Where TaylorShift's linear form becomes faster than its quadratic one: counted, and measured.

    python -m experiments.linear.taylor_crossover

  Nauen, Palacio and Dengel 2024, "TaylorShift", arXiv:2403.02920: both forms compute the same; the
      linear one needs fewer operations from a length near H^2 on, and is measured to be faster from
      about 1700 tokens on for usual widths H.

Forward times of one head, float32, of as many sequences as make the longest one's tokens.  The
measured length is where the linear form begins to be faster, on a power law between the measured
lengths beside it; nan where it is not between two.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from attnjax import lab
from attnjax.lab import Cell, Claim, Need, above, between, of, timing
from attnjax.ops.linear_recurrent import taylor_crossover, taylor_shift, taylor_shift_direct

PAPERS = (234,)

FORMS = {"direct": taylor_shift_direct, "linear": taylor_shift}


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    widths: tuple[int, ...] = (8, 16, 32)  # of a head
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    results: Path = Path("results/taylor_crossover")

    def __post_init__(self):
        super().__post_init__()
        for name in ("widths", "lengths"):
            if len(getattr(self, name)) < 2 or min(getattr(self, name)) < 1:
                raise lab.UserError(f"{name}: got {getattr(self, name)}, expected two at least")


QUICK = replace(Config(), widths=(8, 16), lengths=(64, 512, 4096), rounds=3)


def timed(tokens: int, form: str, H: int, T: int) -> timing.Timed:
    q, k, v = jax.random.normal(jax.random.key(H), (3, tokens // T, T, 1, H))
    return timing.timed(FORMS[form], (q, k, v, jnp.ones(1)))


def cells(c: Config) -> list[Cell]:
    tokens = max(c.lengths)
    rows = lambda H, T: {f"{form}, H={H}": partial(timed, tokens, form, H, T) for form in FORMS}
    return [Cell(T, rows(H, T)) for H in c.widths for T in c.lengths]


def crossovers(c: Config, seconds: timing.Rows) -> lab.Metrics:
    """The measured length, and that over the counted one."""
    table = {}
    for H in c.widths:
        found = timing.crossover(seconds[f"linear, H={H}"], seconds[f"direct, H={H}"])
        counted = taylor_crossover(H).operations
        table[f"linear, H={H}"] = {"crossover": found, "over counted": found / counted}
    return table


def claims(c: Config) -> tuple[Claim, ...]:
    short, long = f"T={min(c.lengths)}", f"T={max(c.lengths)}"

    def seen(H: int) -> tuple[Need, ...]:
        """Both sides of the crossover, by more than noise."""
        direct, linear = (lambda T, form=form: of(f"{form}, H={H}", T) for form in FORMS)
        return (
            Need(f"H={H}: direct is faster at {short}", linear(short) / direct(short), above(1.3)),
            Need(f"H={H}: linear is faster at {long}", direct(long) / linear(long), above(1.3)),
        )

    told = [
        Claim(f"H={H}: faster from about the counted length on", "near H^2, or above",
              of(f"linear, H={H}", "over counted"), between(0.5, 4), seen(H))
        for H in c.widths
    ]  # fmt: skip
    narrow, wide = c.widths[:2]
    grown = taylor_crossover(wide).operations / taylor_crossover(narrow).operations
    crossover = lambda H: of(f"linear, H={H}", "crossover")
    widest = max(c.widths)
    told += [
        Claim(f"the crossover grows with H^2, from H={narrow} to {wide}", f"{grown:.1f} times",
              crossover(wide) / crossover(narrow), between(grown / 2, 2 * grown),
              (*seen(narrow), *seen(wide))),
        Claim(f"H={widest}: linear is faster at {long}", "from 1700 tokens on",
              of(f"direct, H={widest}", long) / of(f"linear, H={widest}", long), above(1.1)),
    ]  # fmt: skip
    return tuple(told)


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Timing(cells, crossovers), claims)

if __name__ == "__main__":
    STUDY.main()
