"""One op in one form: the programs that laws run, compiled once and shared.

Truth is float64: oracles are NumPy loops over the reference's formula, so a tolerance in a law
covers rounding and nothing else.
"""

import functools
import importlib
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import Blockwise, Chunked, masks
from attnjax.catalogue import OPS
from attnjax.op import Op

BY_NAME = {op.name: op for op in OPS}

# For each engine: the readable form, tiles that do not divide T and S, and what a user gets.
FORMS = {
    "attend": {"truth": "dense", "tiles": Blockwise(4, 3), "default": "blockwise"},
    "linear_attend": {"truth": "recurrent", "tiles": Chunked(4), "default": "chunked"},
}


# ----------------------------------------------------------------------- what a law applies to


def forms_of(op: Op) -> tuple[str, ...]:
    """The forms that laws compare: the readable one, and tiles where the op takes `impl`."""
    return ("truth", "tiles") if "impl" in op.params else ("truth",)


# Attention and mixers are under every law that their properties fit; the other kinds under these.
OF_KIND = {
    "loss": {"formula", "annotations", "limits", "gradients", "jvp", "jit", "loss"},
    "policy": {"annotations", "limits", "policy"},
    "probe": {"formula", "annotations", "limits", "jit"},
}


def applies(op: Op, law: str) -> bool:
    """Whether the op's kind and properties put it under the law, and it is not exempt."""
    if law not in OF_KIND.get(op.kind, {law} - {"loss", "policy"}):
        return False
    letters, params = op.letters, op.params
    rules = {
        "unequal": "S" in letters,
        "grouped": {"N", "K"} <= letters and op.kind == "attention",
        "masked": "mask" in params,
        "implementations": "impl" in params,
        "devices": "impl" in params,
        "kernels": "impl" in params,
        "split": "state" in params,
        "documents": "documents" in params,
        "limits": bool(op.limits),
    }
    return rules.get(law, True) and law not in op.exempt


# ------------------------------------------------------------------------------------ arguments


def is_array(x) -> bool:
    """A floating-point array, or a tree of nothing else: what derivatives are taken by."""
    leaves = jax.tree.leaves(x)
    floating = lambda leaf: isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return bool(leaves) and all(map(floating, leaves))


def arrays(args: dict) -> dict:
    return {name: x for name, x in args.items() if is_array(x)}


def others(args: dict) -> dict:
    return {name: x for name, x in args.items() if not is_array(x)}


def cast(tree, dtype):
    """Floating-point arrays in another dtype, by NumPy: nothing is compiled."""
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype) if floating(x) else x, tree)


def as_numpy(tree):
    exact = lambda x: np.asarray(x, np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None)
    return jax.tree.map(lambda x: exact(x) if isinstance(x, jax.Array) else x, tree)


def tokens_of(op: Op, given: dict) -> list[str]:
    """The array arguments with one entry per token, (B,T,...): what past and future mean for."""
    B, T = batch(op, given), lengths(op, given)[0]
    shapes = {name: given[name].shape for name in op.shapes if name in given}
    return [name for name, shape in shapes.items() if shape[:2] == (B, T)]


def batch(op: Op, given: dict) -> int:
    """B."""
    return next(given[name].shape[0] for name in op.shapes if name in given)


def lengths(op: Op, given: dict) -> tuple[int, int]:
    """T, of the first argument, and S, of the keys or values."""
    T = next(given[name].shape[1] for name in op.shapes if name in given)
    keys = given.get("k", given.get("v"))
    return T, T if keys is None else keys.shape[1]


def direction(like, seed: int):
    """A random tree like another, in its dtypes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), like)


def moved(given, step, length: float):
    return jax.tree.map(lambda x, dx: x + length * dx, given, step)


def default_mask(op: Op) -> masks.Mask:
    return op.params["mask"].default


# ------------------------------------------------------------------------------------- programs


class Case:
    """An op in a form ("truth", "tiles", "default", or an implementation) at given sizes."""

    def __init__(self, op: Op, form="truth", draw=None, **sizes: int):
        self.op, self.sizes, self.drawn = op, sizes, draw
        self.impl = FORMS[op.engine][form] if isinstance(form, str) and op.engine else form
        self.rest = others(self.sample(0))
        if "impl" in op.params:
            self.rest["impl"] = self.impl

    def sample(self, seed: int) -> dict:
        return self.op.sample(seed, self.drawn, **self.sizes)

    def given(self, seed: int, dtype=jnp.float32) -> dict:
        """The array arguments of a sample."""
        return cast(arrays(self.sample(seed)), dtype)

    def call(self, given: dict, allowed=None):
        """The op on array arguments, with a boolean array (B|1,1,T,S) as its mask, if any."""
        mask = {} if allowed is None else {"mask": masks.array(allowed)}
        return self.op.fn(**given, **self.rest, **mask)

    @functools.cached_property
    def value(self) -> Callable:
        """(arrays, allowed or None) -> the result."""
        return jax.jit(self.call)

    @functools.cached_property
    def pull(self) -> Callable:
        """(arrays, cotangent, allowed or None) -> the result and the arrays' cotangents."""

        @jax.jit
        def both(given, cotangent, allowed=None):
            out, back = jax.vjp(lambda x: self.call(x, allowed), given)
            return out, back(cotangent)[0]

        return both


@functools.lru_cache(maxsize=8)
def _case(name: str, form, sizes: tuple) -> Case:
    return Case(BY_NAME[name], form, **dict(sizes))


def forget() -> None:
    """Drops all cases with their programs."""
    _case.cache_clear()


def case(op: Op, form="truth", **sizes: int) -> Case:
    """The case, the same one for all laws that come one after the other."""
    return _case(op.name, form, tuple(sizes.items()))


def oracle(op: Op) -> Callable:
    """The NumPy float64 function in its test file: the name of the op and `_oracle`."""
    leaf = op.module.rsplit(".", 1)[1]
    module = importlib.import_module(f"tests.ops.{op.module.split('.')[-2]}.test_{leaf}")
    return getattr(module, f"{op.name}_oracle")


def expected(op: Op, args: dict, allowed=None) -> np.ndarray:
    """What the oracle says, of arguments as the op takes them."""
    exact = {name: as_numpy(x) if is_array(x) else x for name, x in args.items()}
    more = {} if allowed is None else {"allowed": np.asarray(allowed)}
    return oracle(op)(**exact, **more)


# ------------------------------------------------------------------------------------ comparing


def close(got, want, tolerance: float) -> None:
    """Within `tolerance` of the largest value wanted: scale-free, elementwise."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


def close_trees(got, want, tolerance: float) -> None:
    jax.tree.map(functools.partial(close, tolerance=tolerance), got, want)


def takes(fn: Callable, args: dict) -> dict:
    """Those arguments that a function has parameters for."""
    params = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in params):
        return args
    return {p.name: args[p.name] for p in params if p.name in args}
