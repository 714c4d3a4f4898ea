"""What is measured: this project's attention in its forms, beside jax.nn; verified, and timed.

A runner draws fresh data (`load`), makes n calls one behind the other and waits for the last
(`run`), and lets its data go (`drop`).  The modes are "fwd", "bwd" (the pullback alone, from what
the forward pass kept) and "fwd+bwd".  A `Form` is a computation of ours for any sizes.

Only functions import attnjax.  PyTorch's rivals are in `rivals`.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.kernels import launch

DTYPE = jnp.bfloat16
FWD, BWD, BOTH = "fwd", "bwd", "fwd+bwd"
Array = Any
Spec = tuple[Any, ...]  # a mask: ("causal",), ("window", 256), ...; `mask_mod` lists them


class Sizes(NamedTuple):
    """The letters of one call; D is H."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int


@runtime_checkable
class Runner(Protocol):
    def load(self, seed: int) -> None: ...

    def run(self, n: int) -> Any: ...

    def drop(self) -> None: ...


class Jax:
    """fn(*draw(key)); gradients are those of the first `learned` arguments."""

    def __init__(
        self, fn: Callable[..., Array], draw: Callable[[Array], Any], mode: str, learned: int = 3
    ) -> None:
        out = jax.eval_shape(fn, *jax.eval_shape(draw, jax.random.key(0)))
        self.mode, self.args, self.g = mode, (), None
        self._kept: Any = None

        def pull(args: Any) -> Any:
            return jax.vjp(lambda *first: fn(*first, *args[learned:]), *args[:learned])

        def both(args: Any, g: Array) -> Any:
            result, back = pull(args)
            return result, back(g)

        def data(key: Array) -> Any:
            first, second = jax.random.split(key)
            return draw(first), jax.random.normal(second, out.shape, out.dtype)

        self._data = jax.jit(data)
        self._keep = jax.jit(lambda args: pull(args)[1])
        self._back = jax.jit(lambda kept, g: kept(g))
        self._both = jax.jit(both)
        self._forward = jax.jit(fn)

    def load(self, seed: int) -> None:
        self.drop()
        self.args, self.g = self._data(jax.random.key(seed))
        if self.mode == BWD:
            self._kept = self._keep(self.args)
        jax.block_until_ready((self.args, self.g, self._kept))

    def run(self, n: int) -> Any:
        out = None
        for _ in range(n):
            if self.mode == FWD:
                out = self._forward(*self.args)
            elif self.mode == BWD:
                out = self._back(self._kept, self.g)
            else:
                out = self._both(self.args, self.g)
        return jax.block_until_ready(out)

    def drop(self) -> None:
        self.args, self.g, self._kept = (), None, None


def jax_nn(implementation: str, spec: Spec) -> Callable[..., Array]:
    """jax.nn.dot_product_attention, full, causal or with a causal window."""
    window = (spec[1], 0) if spec[0] == "window" else None

    def fn(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=spec[0] != "full", local_window_size=window,
            implementation=implementation,  # type: ignore[arg-type]
        )  # fmt: skip

    return fn


# ------------------------------------------------------------------------------------ our forms


@dataclass(frozen=True, eq=False)
class Form:
    """A computation for any sizes, of q, k, v and `extras`; the first `learned` have gradients.

    run       (sizes, impl) -> fn(*arrays)
    settings  (sizes, extras) -> options of `attend` for the same by the dense formula; None: linear
    letters   axes of the extras: B, N and K are cut for the check, "X" is N or K
    pairs     (sizes) -> pairs of a query and a key that are allowed, of one head
    spec      the mask, or None where it is data; fla: what flash-linear-attention calls it
    """

    run: Callable[[Sizes, Any], Callable[..., Array]]
    settings: Callable[[Sizes, Any], dict[str, Any]] | None
    extras: Callable[..., tuple[Array, ...]] = lambda z, key, q, k: ()
    letters: tuple[str, ...] = ()
    learned: int = 3
    pairs: Callable[[Sizes], int] = lambda z: z.T
    spec: Spec | None = None
    fla: str = ""

    def draw(self, z: Sizes, key: Array) -> tuple[Array, ...]:
        keys = jax.random.split(key, 4)
        shapes = ((z.B, z.T, z.N, z.H), (z.B, z.S, z.K, z.H), (z.B, z.S, z.K, z.H))
        q, k, v = (jax.random.normal(a, s, DTYPE) for a, s in zip(keys[:3], shapes, strict=True))
        if self.settings is None:  # states of unit keys stay in range
            wide = k.astype(jnp.float32)
            k = (wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)).astype(DTYPE)
        return (q, k, v, *self.extras(z, keys[3], q, k))


def scaled(spec: Spec, z: Sizes) -> Spec:
    """The mask for these sizes: the one named at full size, smaller on fewer tokens."""
    name, *n = spec
    if name == "window":
        return (name, min(n[0], z.S // 2))
    if name == "sinks_window":
        return (name, n[0], min(n[1], z.S // 4))
    if name == "neighborhood":
        side = math.isqrt(z.T)
        return (name, side, min(n[0], side // 2))
    return spec


def mask_of(spec: Spec, z: Sizes) -> Any:
    from attnjax.core import masks as m

    name, *n = scaled(spec, z)
    made = {
        "full": lambda: m.everything,
        "causal": lambda: m.causal,
        "window": lambda: m.window(n[0]),
        "sinks_window": lambda: m.causal & (m.sinks(n[0]) | m.window(n[1])),
        "document": lambda: m.causal & m.document(np.arange(z.T) * n[0] // z.T),
        "neighborhood": lambda: m.neighborhood((n[0], n[0]), (n[1], n[1])),
    }
    return made[name]()


@functools.lru_cache(maxsize=64)
def allowed_pairs(spec: Spec, z: Sizes) -> int:
    """Counted, in the tiles that are not of one kind."""
    mask, size = mask_of(spec, z), 128
    from attnjax.core.masks import FULL, PARTIAL

    kinds = mask.tiles(z.T, z.S, size, size)
    mask = mask.resolve(z.T, z.S)
    spans = lambda n: [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
    rows, columns, total = spans(z.T), spans(z.S), 0
    for i, j in np.argwhere(kinds != 0):
        if kinds[i, j] == FULL:
            total += len(rows[i]) * len(columns[j])
        elif kinds[i, j] == PARTIAL:
            part = mask.allowed(rows[i][:, None], columns[j][None])
            total += int(np.broadcast_to(part, (len(rows[i]), len(columns[j]))).sum())
    return total


def visited(spec: Spec, z: Sizes, mode: str) -> float:
    """The share of tiles with an allowed pair, in the kernels' own tiles for these widths."""
    from attnjax.core.pairwise.fused import tilings

    mask = mask_of(spec, z)
    forward, rows, columns = tilings(DTYPE, z.H, z.H, launch.capability())
    used = (forward,) if mode == FWD else (rows, columns)
    share = lambda t: float((mask.tiles(z.T, z.S, t.block_q, t.block_k) != 0).mean())
    return statistics.mean(map(share, used))


@functools.cache
def plain(*spec: Any) -> Form:
    return attention(spec)


def attention(
    spec: Spec,
    normalizer: Callable[[Sizes, Any], Any] | None = None,
    mods: Callable[[Sizes, Any], Any] = lambda z, xs: (),
    **more: Any,
) -> Form:
    """`attend` with this mask; normalizer and mods are made of the extras."""

    def settings(z: Sizes, xs: Any) -> dict[str, Any]:
        from attnjax.core import normalizers

        n = normalizer(z, xs) if normalizer else normalizers.softmax
        return {"mods": mods(z, xs), "mask": mask_of(spec, z), "normalizer": n}

    def run(z: Sizes, impl: Any) -> Callable[..., Array]:
        from attnjax.core.pairwise.attend import attend

        return lambda q, k, v, *xs: attend(q, k, v, **settings(z, xs), impl=impl)

    return Form(run, settings, pairs=functools.partial(allowed_pairs, spec), spec=spec, **more)


def per_head(z: Sizes, key: Array, q: Array, k: Array) -> tuple[Array, ...]:
    return (jax.random.normal(key, (z.N,)),)


def normalizer_forms() -> dict[str, Form]:
    from attnjax.core import normalizers as n

    # Biases and clipping at the size of a weight: else all that is checked would be zero.
    made: dict[str, Callable[[Sizes, Any], Any]] = {
        "softmax_one": lambda z, xs: n.softmax_one,
        "sigmoid": lambda z, xs: n.sigmoid(-math.log(z.S)),
        "relu": lambda z, xs: n.relu(1), "softpick": lambda z, xs: n.softpick(),
        "signed": lambda z, xs: n.signed, "taylor": lambda z, xs: n.taylor(2),
        "hard": lambda z, xs: n.hard, "softplus": lambda z, xs: n.softplus(),
        "softplus^3": lambda z, xs: n.softplus(3, 0.5),
        "clipped_softmax": lambda z, xs: n.clipped_softmax(-0.25 / z.S),
        "entmax": lambda z, xs: n.entmax(1.5), "sparsemax": lambda z, xs: n.sparsemax,
    }  # fmt: skip
    sink = attention(
        ("causal",), lambda z, xs: n.softmax_sink(xs[0]),
        extras=per_head, letters=("N",), learned=4,
    )  # fmt: skip
    forms = {name: attention(("causal",), make) for name, make in made.items()}
    return {"softmax": plain("causal"), "softmax_sink": sink, **forms}


ONE_PASS = (
    "softmax_one", "softmax_sink", "sigmoid", "relu", "softpick", "signed", "taylor", "hard",
    "softplus",
)  # fmt: skip


def mod_forms() -> dict[str, Form]:
    from attnjax.core import mods as m

    normal = jax.random.normal
    table = lambda z, key, q, k: (normal(key, (z.N, 257)),)
    gates = lambda z, key, q, k: (jax.nn.log_sigmoid(3 + normal(key, (z.B, z.T, z.N))),)
    pairs = lambda z, key, q, k: (normal(key, (1, z.N, z.T, z.S), DTYPE),)
    made: dict[str, tuple[Any, ...]] = {
        "alibi": (per_head, "N", 3, lambda z, xs: (m.alibi(jnp.abs(xs[0])),)),
        "soft_cap": (None, "", 3, lambda z, xs: (m.soft_cap(30.0),)),
        "relative_bias": (table, "NR", 4, lambda z, xs: (m.relative_bias(xs[0]),)),
        "forget": (gates, "BTN", 4, lambda z, xs: (m.forget(xs[0]),)),
        "pair_bias": (pairs, "1NTS", 4, lambda z, xs: (m.pair_bias(xs[0]),)),
    }
    forms = {"none": plain("causal")}
    for name, (extras, letters, learned, mods) in made.items():
        extra = {} if extras is None else {"extras": extras, "letters": (letters,)}
        forms[name] = attention(("causal",), None, mods, learned=learned, **extra)
    return forms


MASKS: dict[str, Spec] = {
    "full": ("full",), "causal": ("causal",), "window 256": ("window", 256),
    "window 1024": ("window", 1024), "window 4096": ("window", 4096),
    "document 8": ("document", 8), "sinks 4, window 1024": ("sinks_window", 4, 1024),
    "neighborhood 32x32": ("neighborhood", 32),
}  # fmt: skip


def selected_form(heads: str, block_q: int, block: int, top: int) -> Form:
    """Each block of queries sees its own blocks of keys, and those of the largest mean scores.

    heads   letter of those that select for themselves, "N" or "K"
    """

    # With one query a block that is what ops.sparse_select.moba does.
    def sizes(z: Sizes) -> tuple[int, int, int]:
        bk = min(block, z.T // 8)
        return min(block_q, z.T // 4), bk, min(top, z.T // bk // 2)

    def extras(z: Sizes, key: Array, q: Array, k: Array) -> tuple[Array, ...]:
        from attnjax.core.blocks import select

        bq, bk, most = sizes(z)
        pooled = select.mean_pool(q, bq) if bq > 1 else q
        scores = select.dot_scores(pooled, select.mean_pool(k, bk))
        if heads == "K":
            scores = select.over_group(scores, z.K)
        scores = select.causal_scores(scores, bq, bk)
        chosen = select.top_k(scores, most, block_q=bq, block_k=bk)
        return chosen.indices, chosen.valid

    def run(z: Sizes, impl: Any) -> Callable[..., Array]:
        from attnjax.core import masks
        from attnjax.core.blocks.selection import Selection
        from attnjax.core.pairwise.attend import attend

        bq, bk, _ = sizes(z)

        def fn(q: Array, k: Array, v: Array, indices: Array, valid: Array) -> Array:
            blocks = Selection(indices, valid, bq, bk)
            return attend(q, k, v, blocks=blocks, mask=masks.causal, impl=impl)

        return fn

    def settings(z: Sizes, xs: Any) -> dict[str, Any]:
        from attnjax.core import masks

        (bq, bk, _), (indices, valid) = sizes(z), xs
        seen = jnp.any((indices[..., None] == np.arange(-(-z.S // bk))) & valid[..., None], 3)
        seen = jnp.repeat(jnp.repeat(seen, bq, 1)[:, : z.T], bk, -1)[..., : z.S]
        seen = jnp.repeat(seen, z.N // seen.shape[2], 2).swapaxes(1, 2)
        return {"mask": masks.array(seen & (np.arange(z.S) <= np.arange(z.T)[:, None]))}

    def pairs(z: Sizes) -> int:
        bq, bk, most = sizes(z)
        total = 0
        for first in range(0, z.T, bq):
            last = min(first + bq, z.T)
            mine, end = first // bk, -(-last // bk)  # its own blocks; those before them are whole
            total += min(most - (end - mine), mine) * bk * (last - first)
            total += sum(range(first + 1 - mine * bk, last + 1 - mine * bk))
        return total

    return Form(run, settings, extras, (f"BU{heads}M",) * 2, 3, pairs)


SELECTED: dict[str, tuple[str, int, int, int]] = {
    "moba of 1": ("N", 1, 512, 3), "moba of 128": ("N", 128, 512, 3),
    "nsa of 1": ("K", 1, 64, 16), "nsa of 64": ("K", 64, 64, 16),
}  # fmt: skip


def linear_form(kind: str) -> Form:
    """o_t = q_t . S_t with the decay, or the delta rule, that `kind` names."""

    def extras(z: Sizes, key: Array, q: Array, k: Array) -> tuple[Array, ...]:
        shape = (z.B, z.T, z.N) + ((z.H,) if kind == "channel" else ())
        x = jax.random.normal(key, shape)
        if kind == "delta":
            return (jax.nn.sigmoid(x),)
        return () if kind == "none" else (jax.nn.log_sigmoid(3 + x),)

    def run(z: Sizes, impl: Any) -> Callable[..., Array]:
        from attnjax.core.recurrence.linear import linear_attend

        name = "beta" if kind == "delta" else "log_decay"

        def fn(q: Array, k: Array, v: Array, *xs: Array) -> Array:
            gate = {name: xs[0]} if xs else {}
            return linear_attend(q * z.H**-0.5, k, v, **gate, impl=impl)

        return fn

    letters = {"none": (), "channel": ("BTNH",)}.get(kind, ("BTN",))
    return Form(run, None, extras, letters, 3 + len(letters), fla=kind)


# ------------------------------------------------------------------------ run, and verified


def kernel(form: Form, interpret: bool = False) -> Any:
    """The implementation that is measured."""
    if form.settings is None:
        from attnjax.core.recurrence.triton import Triton as Linear

        return Linear(interpret=interpret)
    from attnjax.core.pairwise.triton import Triton

    return Triton(interpret=interpret)


@functools.lru_cache(maxsize=4)  # what several cases are compared with is compiled once
def ours(form: Form, z: Sizes, mode: str, impl: Any) -> Jax:
    return Jax(form.run(z, impl), functools.partial(form.draw, z), mode, form.learned)


def _rounded(score: Array) -> Array:
    return jax.lax.reduce_precision(score, 8, 7)  # a plain cast to bfloat16 and back XLA removes


def naive(form: Form, z: Sizes) -> Callable[..., Array]:
    """The formula as one writes it in bfloat16: scores and weights are rounded."""
    from attnjax.core import mods
    from attnjax.core.pairwise.attend import attention_weights

    assert form.settings is not None
    settings = form.settings

    def fn(q: Array, k: Array, v: Array, *xs: Array) -> Array:
        how = settings(z, xs)
        how["mods"] = (mods.mod(_rounded), *how.get("mods", ()))
        weights = _rounded(attention_weights(q, k, **how))
        return jnp.einsum("BNTS,BSND->BTND", weights, jnp.repeat(v, z.N // z.K, 2))

    return fn


def truth(form: Form, z: Sizes) -> Callable[..., Array]:
    if form.settings is None:
        return form.run(z, "recurrent")
    from attnjax.core.pairwise.attend import attend

    settings = form.settings
    return lambda q, k, v, *xs: attend(q, k, v, **settings(z, xs), impl="dense")


def cut(form: Form, z: Sizes, args: Any) -> tuple[Sizes, tuple[Array, ...]]:
    """The first example's first key head, and the query heads that share it."""
    G = z.N // z.K
    keep = {"B": 1, "N": G, "K": 1}
    letters = ("BTNH", "BSKH", "BSKH", *form.letters)
    one = lambda x, axes: x[tuple(slice(keep.get(a)) for a in axes)]
    return z._replace(B=1, N=G, K=1), tuple(map(one, args, letters))


def verify(form: Form, sizes: Sizes, run: Jax) -> dict[str, Any]:
    """Whether a loaded runner is right: "holds", "errors" {name: [it, limit]}, "wrong" in words."""
    z, args = cut(form, sizes, run.args)
    got = run.run(1)
    out, grads = {FWD: (got, ()), BWD: (None, got)}.get(run.mode) or got
    one = (slice(1), slice(None), slice(z.N))  # of (B,T,N,H)
    found = {} if out is None else {"out": out[one]}
    if grads:
        own = cut(replace(form, letters=()), sizes, grads[:3])[1]
        found |= dict(zip(("dq", "dk", "dv"), own, strict=True))
    assert run.g is not None
    g = run.g[one]

    def every(fn: Callable[..., Array], args: Any, g: Array) -> dict[str, Array]:
        if not grads:
            return {"out": fn(*args)}
        out, pull = jax.vjp(lambda *x: fn(*x, *args[3:]), *args[:3])
        all_four = {"out": out, **dict(zip(("dq", "dk", "dv"), pull(g), strict=True))}
        return {name: all_four[name] for name in found}

    wide = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
    with jax.default_matmul_precision("highest"):
        right = jax.jit(functools.partial(every, truth(form, z)))(tuple(map(wide, args)), wide(g))
    rough = None
    if form.settings is not None:
        rough = jax.jit(functools.partial(every, naive(form, z)))(args, g)
    errors, wrong = {}, []
    for name, x in found.items():
        for norm in (_rms, _most):
            size, error = norm(right[name]), norm(wide(x) - right[name])
            if rough is None:
                limit = size * (0.01 if norm is _rms else 0.05)
            else:  # the last rounding is granted where the formula happens to be exact
                limit = 2 * norm(wide(rough[name]) - right[name]) + size * 2**-9
                if norm is _rms:  # rounded scores may tie: "hard" would then allow anything
                    limit = min(limit, 0.05 * size)
            what = f"{name} {norm.__name__.strip('_')}"
            errors[what] = [error, limit]
            if not error <= limit:  # NaN is not, either
                wrong.append(f"{what} {error:.2g} > {limit:.2g}")
    return {"holds": not wrong, "errors": errors, "wrong": wrong}


def _rms(x: Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


def _most(x: Array) -> float:
    return float(jnp.max(jnp.abs(x)))


# ---------------------------------------------------------------------------------------- and timed


SLICE = 2e-3  # seconds of a measurement at least: a call may be as short as its dispatch


def chained(run: Runner) -> int:
    """How many calls make a measurement; after warming up."""
    run.load(0)
    run.run(1)
    began = time.perf_counter()
    run.run(1)
    return min(50, 1 + int(SLICE / (time.perf_counter() - began)))


def summary(samples: Sequence[float], chain: int) -> dict[str, Any]:
    low, median, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else 3 * [samples[0]]
    return {"median": median, "low": low, "high": high, "rounds": len(samples), "chain": chain}


def measure(runs: dict[str, Runner], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each, or its error; all take turns in every round, from another one on each."""
    chains: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    told: dict[str, dict[str, Any]] = {}

    def attempt(name: str, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:
            told[name] = {"error": one_line(error)}
        finally:
            runs[name].drop()

    def start(name: str) -> None:
        chains[name] = chained(runs[name])

    def sample(name: str, seed: int) -> None:
        run, n = runs[name], chains[name]
        run.load(seed)
        run.run(1)
        began = time.perf_counter()
        run.run(n)
        samples[name].append((time.perf_counter() - began) / n)

    names = list(runs)
    for name in names:
        attempt(name, functools.partial(start, name))
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            if name not in told:
                attempt(name, functools.partial(sample, name, i + 1))
    return {name: told.get(name) or summary(samples[name], chains[name]) for name in names}


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def ceilings(rounds: int, n: int = 8192, copied: int = 1 << 30) -> dict[str, Any]:
    """A bfloat16 product of n^3 in TFLOP/s, and a copy of so many bytes in GB/s, read + written."""
    square = lambda key: tuple(jax.random.normal(key, (2, n, n), DTYPE))
    words = lambda key: (jax.random.normal(key, (copied // 4,)),)
    runs: dict[str, Runner] = {
        "product": Jax(jnp.matmul, square, FWD),
        "copy": Jax(jnp.negative, words, FWD),  # a plain copy XLA may leave out
    }
    got = measure(runs, rounds)
    if errors := [x["error"] for x in got.values() if "error" in x]:
        raise RuntimeError(f"ceilings: {errors[0]}")
    product, copy = (got[name]["median"] for name in runs)
    return {"TFLOP/s": 2 * n**3 / product / 1e12, "GB/s": 2 * copied / copy / 1e9}
