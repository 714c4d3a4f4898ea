"""The kernels' first minute on a card: each step says how long it took; the first failure ends it.

    python -m kernels.smoke                # on a GPU, in 90 seconds
    python -m kernels.smoke --interpret    # tiny sizes in Triton's interpreter, anywhere

What is measured here is a first look, no result: `python -m kernels.bench` measures.
"""

import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.kernels import bench, forms, launch
from attnjax.kernels.forms import BOTH, FWD, Sizes

_ADD_ONE = """
import triton
import triton.language as tl


@triton.jit
def entry(i0, o0):
    at = tl.arange(0, 16)
    tl.store(o0 + at, tl.load(i0 + at) + 1)
"""


@dataclass(frozen=True)
class Config:
    """What to run."""

    interpret: bool = False  # tiny sizes, by Triton's interpreter


Step = tuple[str, Callable[[], str]]


def steps(c: Config) -> Iterator[Step]:
    """In the order of what stops everything else."""
    small = lambda z: Sizes(1, min(z.T, 32), min(z.S, 32), 2, 1 if z.N > z.K else 2, 16)
    size = small if c.interpret else lambda z: z
    checked = lambda form, z, mode: functools.partial(_verified, c, form, size(z), mode)
    causal, linear = forms.plain("causal"), forms.linear_form("delta")
    short = Sizes(1, 1024, 1024, 8, 8, 128)
    yield "versions", lambda: _versions(c)
    yield "a product of matrices", lambda: _product(256 if c.interpret else 8192)
    yield "three lines of Triton", lambda: _add_one(c)
    yield "causal, forward and backward", checked(causal, short, BOTH)
    yield "heads of 64, two to a key", checked(causal, replace_width(short, 64), BOTH)
    yield "the same bits twice", lambda: _twice(c, causal, size(short))
    yield "documents", checked(forms.plain("document", 8), short, BOTH)
    yield "a step of decoding", checked(forms.plain("full"), Sizes(4, 1, 4096, 8, 2, 128), FWD)
    yield "the delta rule", checked(linear, Sizes(1, 1024, 1024, 4, 4, 128), BOTH)
    yield "rate", lambda: _rate(c, causal, size(Sizes(1, 16384, 16384, 16, 16, 128)))


def replace_width(z: Sizes, H: int) -> Sizes:
    """With heads of another width, two of which share a key head."""
    return z._replace(H=H, K=z.N // 2)


def _versions(c: Config) -> str:
    if not c.interpret and (reason := launch.missing()) is not None:
        raise RuntimeError(reason)
    tool = shutil.which("ptxas") or "no ptxas in PATH: XLA needs one"
    found = ", ".join(f"{name} {number}" for name, number in bench.versions().items())
    return f"{jax.devices()[0].device_kind}; {found}; {tool}"


def _product(n: int) -> str:
    x = jnp.ones((n, n), jnp.bfloat16)
    times = jax.jit(lambda x: x @ x)
    jax.block_until_ready(times(x))
    began = time.perf_counter()
    jax.block_until_ready([times(x) for _ in range(10)])
    return f"{20 * n**3 / (time.perf_counter() - began) / 1e12:.0f} TFLOP/s in bfloat16"


def _add_one(c: Config) -> str:
    x = jnp.arange(16, dtype=jnp.float32)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    program = launch.Program("add_one", _ADD_ONE, ("float32",), (shape,), (1,), 1, 1)
    run = launch._interpreted if c.interpret else launch._on_gpu
    got = jax.jit(lambda x: run(program, [x])[0])(x)
    if not np.array_equal(got, x + 1):
        raise AssertionError(f"got {got}")
    return "launched"


def _runner(c: Config, form: forms.Form, z: Sizes, mode: str) -> forms.Jax:
    run = forms.ours(form, z, mode, forms.kernel(form, c.interpret))
    run.load(0)
    return run


def _verified(c: Config, form: forms.Form, z: Sizes, mode: str) -> str:
    told = forms.verify(form, z, _runner(c, form, z, mode))
    if not told["holds"]:
        raise AssertionError("; ".join(told["wrong"]))
    worst = max((it / limit, name) for name, (it, limit) in told["errors"].items() if limit)
    return f"error {worst[0]:.2f} of what is allowed at most ({worst[1]})"


def _twice(c: Config, form: forms.Form, z: Sizes) -> str:
    run = _runner(c, form, z, BOTH)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), run.run(1), run.run(1))
    if not all(jax.tree.leaves(same)):
        raise AssertionError("two runs differ")
    return "equal"


def _rate(c: Config, form: forms.Form, z: Sizes) -> str:
    run, calls = _runner(c, form, z, FWD), 2 if c.interpret else 20
    jax.block_until_ready(run.run(1))
    began = time.perf_counter()
    jax.block_until_ready(run.run(calls))
    case = bench.Case("dense", "causal", form, z, FWD)
    return f"{case.flops * calls / (time.perf_counter() - began) / 1e12:.3g} TFLOP/s forward"


def main(c: Config) -> None:
    """Runs the steps; leaves with 1 after the first that fails."""
    for name, step in steps(c):
        began = time.perf_counter()
        try:
            said, failed = step(), False
        except Exception as error:
            said, failed = f"FAILED: {forms.one_line(error)}", True
        print(f"{time.perf_counter() - began:6.1f} s  {name}: {said}", flush=True)
        if failed:
            raise SystemExit(1)


def entry() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    unknown = set(sys.argv[1:]) - {"--interpret"}
    if unknown:  # no library for arguments: a card's machine may lack it
        print(f"kernels.smoke: {' '.join(sorted(unknown))}: expected --interpret", file=sys.stderr)
        raise SystemExit(2)
    main(replace(Config(), interpret="--interpret" in sys.argv))


if __name__ == "__main__":
    entry()
