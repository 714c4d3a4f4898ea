"""Checkpoints hold any pytree; see test_distributed for those that are split over devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.lab import checkpoint


def tree(seed):
    return {
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "empty": jnp.zeros((0, 4), jnp.bfloat16),
        "w": np.arange(6.0, dtype=np.float32) + seed,
        "step": 3 + seed,
    }


def test_keys_and_empty_arrays_come_back(tmp_path):
    checkpoint.save(tmp_path, 7, tree(1))
    step, read = checkpoint.latest(tmp_path, tree(0))
    assert step == 7 and read["step"] == 4
    np.testing.assert_array_equal(read["w"], tree(1)["w"])
    assert read["empty"].shape == (0, 4) and read["empty"].dtype == jnp.bfloat16
    for name in ("key", "keys"):
        assert read[name].dtype == tree(1)[name].dtype
        draw = lambda key: jax.random.normal(key.ravel()[0], (3,))
        np.testing.assert_array_equal(draw(read[name]), draw(tree(1)[name]))


def test_an_empty_array_of_another_shape_is_refused(tmp_path):
    checkpoint.save(tmp_path, 7, tree(1))
    with pytest.raises(ValueError, match="holds other shapes"):
        checkpoint.latest(tmp_path, tree(0) | {"empty": jnp.zeros((1, 4), jnp.bfloat16)})


def test_an_interruption_leaves_at_once():
    """Nothing that runs when an interpreter ends, where XLA may crash."""
    program = (
        "import atexit, sys; from attnjax.lab.cli import one_line_errors\n"
        "atexit.register(print, 'the end')\n"
        "print('written')\n"
        "with one_line_errors():\n"
        "    raise KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130 and done.stdout == "written\n"
    assert "the same command goes on from the last checkpoint" in done.stderr
