"""The annotations hold at run time: the package imported under a checker of types."""

import subprocess
import sys

import pytest

PROGRAM = """
from jaxtyping import install_import_hook

with install_import_hook("attnjax", "beartype.beartype"):
    import attnjax.nn, attnjax.parallel, attnjax.probes
    from attnjax.catalogue import OPS
import jax, numpy as np
from attnjax import normalizers

normalizers.softmax_sink(np.zeros(()))
for op in OPS:
    try:
        jax.eval_shape(lambda: op.fn(**op.sample()))
    except Exception as error:
        print(op.name, str(error)[:300])
"""


@pytest.mark.slow
def test_every_op_passes_a_checker_that_is_hooked_into_imports():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [line for line in done.stdout.splitlines() if "Error" in line or "rror whilst" in line]
    assert told == []
