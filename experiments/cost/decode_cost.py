"""A token decoded under a budget costs the same in any context; from a full cache it does not.

    python -m experiments.cost.decode_cost

  Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453:
      a cache of sinks and a window is up to 22.2 times as fast as a window that is recomputed.
  The other targets are this project's own.

Attention of one layer, float32: `steps` tokens one after the other, each appended, attended from,
and put to a policy's vote, behind a context of T tokens.  "T=" is the time of all of them,
"tokens/s" is of the longest context, "MB" are the bytes of the cache that a step carries.
"no cache" attends from all tokens anew for each one more, "window, no cache" from the window's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from attnjax import attend, decode, lab, masks
from attnjax.decode import policies
from attnjax.lab import Cell, Claim, Need, above, below, of, timing
from attnjax.lab.timing import FORWARD, Timed
from attnjax.ops.linear_recurrent import gated_delta_net

PAPERS = (355,)


@dataclass(frozen=True)
class Config(lab.TimingConfig):
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    budget: int = 1024  # of windows and policies
    steps: int = 32
    heads: int = 8
    kv_heads: int = 2
    width: int = 64  # of a head
    recomputed_up_to: int = 4096
    results: Path = Path("results/decode_cost")

    def __post_init__(self):
        super().__post_init__()
        if len(self.lengths) < 2 or min(self.lengths) < self.budget:
            raise lab.UserError(
                f"lengths: got {self.lengths}, expected two at least, of at least the budget "
                f"{self.budget}"
            )


QUICK = replace(
    Config(), lengths=(64, 256), budget=64, steps=2, heads=4, recomputed_up_to=64, rounds=3
)


def full(c: Config) -> dict[str, Callable[[int], decode.Cache]]:
    """Caches of all tokens, for so many slots."""
    sizes = c.kv_heads, c.width
    page = 64
    return {
        "dense": lambda slots: decode.Dense.empty(1, slots, *sizes),
        "int8": lambda slots: decode.Dense.empty(1, slots, *sizes, codec=decode.int8),
        "int4": lambda slots: decode.Dense.empty(1, slots, *sizes, codec=decode.int4),
        "paged": lambda slots: decode.Paged.empty(
            1, slots, *sizes, pages=-(-slots // page), page=page
        ),
    }


def kept(c: Config) -> dict[str, decode.Policy]:
    """Policies of one budget."""
    return {
        "streaming_llm": policies.streaming_llm(c.budget),
        "h2o": policies.h2o(c.budget),
        "tova": policies.tova(c.budget),
        "snapkv": policies.snapkv(c.budget),
    }


def drawn(c: Config, seed: int, tokens: int, heads: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (1, tokens, heads, c.width))


def cache_of(c: Config, name: str, T: int) -> decode.Cache:
    """The cache behind a context of T tokens; of a budget, their last ones at their positions."""
    sizes = c.kv_heads, c.width
    if name in full(c):
        cache, tokens = full(c)[name](T + c.steps), T
    elif name == "window":
        cache, tokens = decode.Window.empty(1, c.budget - 4, *sizes, sinks=4), c.budget
    else:
        cache = decode.Dense.empty(1, c.budget + 1, *sizes, heads=c.kv_heads)
        tokens = c.budget
    k, v = (drawn(c, seed, tokens, c.kv_heads) for seed in (1, 2))
    part = cache.chunk if isinstance(cache, decode.Window) else tokens
    for begin in range(0, tokens, part):
        cache = cache.append(k[:, begin : begin + part], v[:, begin : begin + part])
    moved = lambda x: x + (T - tokens)
    return replace(
        cache,
        positions=jnp.where(cache.positions < 0, -1, moved(cache.positions)),
        length=moved(cache.length),
    )


def decoded(policy: decode.Policy | None, cache: Any, q: Any, k: Any, v: Any) -> jax.Array:
    """The outputs of tokens (steps,1,1,heads,width), one after the other."""

    def step(cache: Any, token: Any) -> tuple[Any, jax.Array]:
        q, k, v = token
        cache = cache.append(k, v)
        out = decode.attend_cache(q, cache)
        return cache if policy is None else policy(q, cache), out

    return jax.lax.scan(step, cache, (q, k, v))[1]


def recomputed(q: jax.Array, k: jax.Array, v: jax.Array, new: Any) -> jax.Array:
    """What a model without a cache does for each token more: all of them again."""

    def step(whole: Any, token: Any) -> tuple[Any, jax.Array]:
        moved = lambda x, y: jnp.concatenate([x[:, 1:], y], axis=1)
        q, k, v = whole = tuple(map(moved, whole, token))
        return whole, attend(q, k, v, mask=masks.causal).sum(1)  # other layers need all rows

    return jax.lax.scan(step, (q, k, v), new)[1]


def recurrent(state: Any, *args: jax.Array) -> jax.Array:
    """The outputs of a recurrence, token by token."""

    def step(state: Any, token: Any) -> tuple[Any, jax.Array]:
        out, state = gated_delta_net(*token, state=state, return_state=True)
        return state, out

    return jax.lax.scan(step, state, args)[1]


def timed(c: Config, name: str, T: int) -> Timed:
    tokens = lambda seed, heads: drawn(c, seed, c.steps, heads).swapaxes(0, 1)[:, None]
    q, k, v = tokens(3, c.heads), tokens(4, c.kv_heads), tokens(5, c.kv_heads)
    if "no cache" in name:
        n = c.budget if "window" in name else T
        whole = (
            drawn(c, seed, n, h) for seed, h in ((3, c.heads), (1, c.kv_heads), (2, c.kv_heads))
        )
        return timing.timed(recomputed, (*whole, (q, k, v)), FORWARD)
    if name == "recurrent":
        gates = jax.nn.sigmoid(q[..., 0]), -jax.nn.softplus(q[..., 1])
        first = tuple(x[0] for x in (q, k, v, *gates))
        state = gated_delta_net(*first, return_state=True)[1]
        return timing.timed(recurrent, (state, q, k, v, *gates), FORWARD)
    run = partial(decoded, kept(c).get(name))
    return timing.timed(run, (cache_of(c, name, T), q, k, v), FORWARD)


def names(c: Config) -> tuple[str, ...]:
    return (*full(c), "window", *kept(c), "recurrent", "window, no cache", "no cache")


def cells(c: Config) -> list[Cell]:
    rows = lambda T: {
        name: partial(timed, c, name, T)
        for name in names(c)
        if name != "no cache" or T <= c.recomputed_up_to
    }
    return [Cell(T, rows(T)) for T in c.lengths]


def rates(c: Config, seconds: timing.Rows) -> lab.Metrics:
    """Tokens per second behind the longest context."""
    return {name: {"tokens/s": c.steps / each[max(each)]} for name, each in seconds.items()}


def sizes(c: Config) -> timing.Once:
    """Megabytes of each cache at the longest context."""

    def of_cache(name: str) -> float:
        cache = jax.eval_shape(lambda: cache_of(c, name, max(c.lengths)))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) / 1e6

    caches = (*full(c), "window", *kept(c))
    return {(name, "MB"): functools.partial(of_cache, name) for name in caches}


def claims(c: Config) -> tuple[Claim, ...]:
    short, long = min(c.lengths), max(c.lengths)
    grown = lambda name: of(name, f"T={long}") / of(name, f"T={short}")
    share = lambda name, rival: of(name, f"T={long}") / of(rival, f"T={long}")
    grows = Need(
        "a full cache costs more with the context", grown("dense"), above(long / short / 4)
    )
    told = [
        Claim(f"{name}: a token costs at T={long} what it does at T={short}", "target",
              grown(name), below(1.5), (grows,))
        for name in ("window", "recurrent")
    ]  # fmt: skip
    told += [
        Claim(f"{name}, votes and all: a quarter of a full cache's time at T={long}", "target",
              share(name, "dense"), below(0.25))
        for name in kept(c)
    ]  # fmt: skip
    says = "a window from a cache is faster than one that is recomputed"
    again = share("window, no cache", "window")
    return (*told, Claim(says, "up to 22.2 times", again, above(22.2)))


STUDY = lab.Study(__doc__, Config(), QUICK, lab.Timing(cells, rates, sizes), claims)

if __name__ == "__main__":
    STUDY.main()
