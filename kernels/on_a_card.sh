#!/usr/bin/env bash
# All that a first call on a machine with one NVIDIA GPU is for, in less than ten minutes:
#
#   bash kernels/on_a_card.sh [OUT]     OUT: a folder for what is found, kernels/results by default
#
# It installs the wheels in .whl (of what the machine lacks; none is fetched), runs kernels.smoke and
# stops if that fails, then a part of `pytest -m gpu`, then dense and decode of kernels.bench, which
# goes on from what kernels/results holds.  Each part has its time; what is left over is the next's.
#
#   .whl    pip download --no-deps --only-binary=:all: -d .whl jax-triton==0.3.1 tyro typeguard \
#           docstring_parser shtab jaxtyping beartype flash-linear-attention fla-core
set -u
cd "$(dirname "$0")/.."
OUT=${1:-${OUT:-kernels/results}}
mkdir -p "$OUT"
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
PYTHON=${PYTHON:-python3}
if compgen -G ".whl/*.whl" > /dev/null; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$SITE" .whl/*.whl || exit 1
fi
export PYTHONPATH="$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 MPLBACKEND=Agg
# The suite's settings are for CPUs: what is set here it leaves.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} JAX_DISABLE_MOST_OPTIMIZATIONS=0
export XLA_PYTHON_CLIENT_PREALLOCATE=false ATTNJAX_CACHE="$SITE/attnjax"
# XLA compiles PTX by a ptxas in PATH: that of the CUDA toolkit, or the one that Triton brings.
NVCC=$(command -v nvcc || ls /usr/local/cuda*/bin/nvcc 2> /dev/null | head -1)
[ -n "$NVCC" ] && export CUDA_HOME="$(dirname "$(dirname "$(readlink -f "$NVCC")")")"
BESIDE=$("$PYTHON" -c 'import os, triton; print(os.path.dirname(triton.__file__))' 2> /dev/null)
export PATH="${CUDA_HOME:+$CUDA_HOME/bin:}$PATH${BESIDE:+:$BESIDE/backends/nvidia/bin}"

nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv | tee "$OUT/card.txt"

timeout "${SMOKE_S:-90}" "$PYTHON" -m kernels.smoke ${SMOKE_FLAGS:-} 2>&1 | tee "$OUT/smoke.txt"
[ "${PIPESTATUS[0]}" -eq 0 ] || { echo "smoke failed: nothing else is run"; exit 1; }

timeout "${TESTS_S:-170}" "$PYTHON" -m pytest -n "${WORKERS:-12}" -q -p no:cacheprovider -m gpu \
    tests/kernels -k "(causal or documents or softpick or sink or token or channel) and not float32" \
    2>&1 | tee "$OUT/tests.txt" | tail -40

timeout "${BENCH_S:-280}" "$PYTHON" -m kernels.bench --only dense decode --lengths 2048 16384 \
    --widths 128 --masks causal --contexts 131072 --queries 1 --rounds 10 --out "$OUT" \
    2>&1 | tee "$OUT/bench.txt"
