"""Tests run on the CPU, with tiny programs: compiling them fast matters more than running them."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
