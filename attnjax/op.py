"""The record of one mechanism, and the makers of its inputs.

A leaf ends with one `VARIANT = Variant(...)`.  Tests, the command line and the table of papers read
these records; nothing else has to be written by hand for a mechanism to be tested and listed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sizes:
    """One choice of the letters; `shape("B T N")` reads a shape off it."""

    B: int = 2
    T: int = 9
    S: int = 9
    N: int = 4
    K: int = 2
    H: int = 8
    D: int = 8
    R: int = 7
    M: int = 4

    def shape(self, letters: str) -> tuple[int, ...]:
        return tuple(int(x) if x.isdigit() else getattr(self, x) for x in letters.split())


Maker = Callable[[jax.Array, Sizes], Any]  # (PRNG key, sizes) -> one argument of the function


def normal(letters: str, scale: float = 1.0) -> Maker:
    """Standard normal numbers times `scale`, of the shape that the letters spell."""
    return lambda key, z: scale * jax.random.normal(key, z.shape(letters), jnp.float32)


def uniform(letters: str, low: float, high: float) -> Maker:
    """Uniform numbers in [low, high)."""
    return lambda key, z: jax.random.uniform(key, z.shape(letters), jnp.float32, low, high)


def log_gates(letters: str) -> Maker:
    """Logarithms of gates in (0, 1), most of them near one."""
    return lambda key, z: jax.nn.log_sigmoid(2.0 + jax.random.normal(key, z.shape(letters)))


def full(letters: str, value: float) -> Maker:
    """An array of one number."""
    return lambda key, z: jnp.full(z.shape(letters), value, jnp.float32)


def constant(value: Any) -> Maker:
    """The same Python value every time."""
    return lambda key, z: value


def grid(key: jax.Array, z: Sizes) -> tuple[int, int]:
    """(rows, columns) of the most square grid of T cells."""
    rows = next(r for r in range(int(z.T**0.5), 0, -1) if z.T % r == 0)
    return rows, z.T // rows


@dataclass(frozen=True)
class Limit:
    """A setting under which the variant must equal a simpler function.

    The law calls `variant.fn(**arguments | given)` and `equals(**arguments)`, where `arguments` are
    a sample of the variant's inputs and `given` maps names to makers.
    """

    says: str
    given: Mapping[str, Maker]
    equals: Callable[..., jax.Array]


@dataclass(frozen=True)
class Variant:
    """One mechanism: the function, its paper, how to draw its inputs, and what it promises.

    fn       the public function
    rows     ids of the papers it implements, as in papers.csv
    paper    where the formula stands: authors, year, arXiv number
    inputs   argument name -> maker; q, k, v are drawn when not given here, None leaves one out
    sizes    letters that differ from the default sample
    engine   what its `impl` goes to, where it takes one: "attend" or "linear_attend"
    limits   degenerate settings and what they must equal; executed as a law
    exempt   law -> the written reason why it does not apply
    """

    fn: Callable[..., Any]
    rows: tuple[int, ...]
    paper: str
    inputs: Mapping[str, Maker | None] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    engine: Literal["attend", "linear_attend"] = "attend"
    limits: tuple[Limit, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def dotted(self) -> str:
        return f"{self.fn.__module__}.{self.fn.__name__}"

    def sample(self, seed: int = 0, **sizes: int) -> dict[str, Any]:
        """Draws one set of arguments, q, k and v first; `sizes` override the letters."""
        z = Sizes(**{**self.sizes, **sizes})
        makers = {"q": normal("B T N H"), "k": normal("B S K H"), "v": normal("B S K D")}
        makers |= dict(self.inputs)
        keys = jax.random.split(jax.random.key(seed), len(makers))
        return {
            name: make(key, z)
            for key, (name, make) in zip(keys, makers.items(), strict=True)
            if make is not None
        }
