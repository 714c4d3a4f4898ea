"""What tests share: inputs, comparisons, derivatives, and processes."""

import concurrent.futures
import functools
import os
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def draw(*shape, seed=0, scale=1.0, dtype=float):
    """Normal values as a JAX array, float64 under enable_x64.

    NumPy draws them: jax.random compiles a program for every shape, which takes a test longer than
    what it tests.
    """
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def draws(*shapes, seed=0, scale=1.0, dtype=float):
    """An array of each shape, all of them different."""
    return [draw(*s, seed=(seed, i), scale=scale, dtype=dtype) for i, s in enumerate(shapes)]


def qkv(B, T, N, H, *, S=None, K=None, D=None, seed=0, scale=1.0, dtype=float):
    """q (B,T,N,H), k (B,S,K,H), v (B,S,K,D); S, K, D are T, N, H where they are not given."""
    S, K, D = S or T, K or N, D or H
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, D)
    return draws(*shapes, seed=seed, scale=scale, dtype=dtype)


def orthonormal(*shape, seed=0):
    """Vectors of length 1, those of the last two axes (n,H) orthogonal, n <= H."""
    n, H = shape[-2:]
    square = np.random.default_rng(seed).normal(size=(*shape[:-2], H, H))
    return jnp.asarray(np.linalg.qr(square)[0][..., :n, :], float)


def close(got, want, tolerance=1e-10):
    """Two trees are alike, finite, and as near as `tolerance` times the largest of an array."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, x), y in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        name = jax.tree_util.keystr(path)
        assert x.shape == y.shape, (name, x.shape, y.shape)
        assert np.isfinite(x).all() and np.isfinite(y).all(), name
        atol = tolerance * max(1.0, np.abs(y).max(initial=0))
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)


def near(got, want, tolerance=1e-5):
    """Two arrays, or trees of them, are alike number by number, absolutely or relatively."""
    compare = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(functools.partial(compare, equal_nan=False), got, want)  # NaN is like nothing


def exact(tree):
    """The arrays of a tree in NumPy's float64, as oracles take them."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def run(fn, *args, **static):
    """fn(*args, **static), jitted; what is static may be anything: sizes, masks, functions."""
    return jax.jit(functools.partial(fn, **static))(*args)


def pairs_of(selection):
    """[b][x]: the pairs (block of queries, block of keys) that a selection holds, a set."""
    indices, valid = np.asarray(selection.indices), np.asarray(selection.valid)
    B, U, X, _ = indices.shape
    seen = lambda b, x: {(u, int(c)) for u in range(U) for c in indices[b, u, x][valid[b, u, x]]}
    return [[seen(b, x) for x in range(X)] for b in range(B)]


def weights_of(op, q, k, *rest, **options):
    """The (B,N,T,S) weights of an op that is linear in v, read with the identity for v."""
    B, S, K = k.shape[:3]
    v = jnp.asarray(np.broadcast_to(np.eye(S, dtype=np.float32)[None, :, None], (B, S, K, S)))
    return np.asarray(op(q, k, v, *rest, **options).transpose(0, 2, 1, 3))


def value_and_pull(fn):
    """fn's result, and the gradients to its arguments of a cotangent that depends on it, jitted."""

    def both(*args):
        out, pull = jax.vjp(fn, *args)
        return out, *pull(jax.tree.map(lambda x: jnp.sin(3 * x), out))

    return jax.jit(both)


def sample(few, more, mark=pytest.mark.interpreter):
    """Parameters of a test: `few` in every run, `more` with the mark, and never twice.

    What is marked `interpreter` runs when kernels changed (tests/kernels/stamp.py), what is marked
    `slow` by `make slow`.
    """
    more = [pytest.param(x, marks=mark) for x in more if x not in few]
    return [*few, *more]


def by_slurm(command):
    """What becomes of two tasks of a command, with two devices each, that SLURM started."""
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "JAX_NUM_CPU_DEVICES": "2",
    }  # fmt: skip
    tasks = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | slurm | {"SLURM_PROCID": str(index)},
        )
        for index in range(2)
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # neither waits for the other's pipe
        said = list(pool.map(lambda task: task.communicate(timeout=120), tasks))
    for task, (_, errors) in zip(tasks, said, strict=True):
        assert task.returncode == 0, errors
    return [out for out, _ in said]


def wait_for(true, process, seconds=60.0):
    """Waits until `true()`; fails when that takes too long or the process has ended before."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "took too long"
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(0.01)
