"""Settings of every test, made before JAX is imported."""

import importlib.util
import mmap
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # virtual ones, for meshes
# Programs here are tiny: compiling them, not running them, is what takes the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def _known(flag):
    """Whether this release of XLA has a flag: it ends processes that name one it does not know.

    A name between zeros is a flag's; the names of fields, also of former ones, stand otherwise.
    """
    spec = importlib.util.find_spec("jaxlib")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in Path(folder).glob("libjax_common.*"):
            with library.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                return content.find(b"\0" + flag.encode() + b"\0") >= 0
    return False


# The other emitter of fused loops compiles in two thirds of the time, and two thirds of the memory.
if _known("xla_cpu_use_fusion_emitters"):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# What one worker or one run has compiled, the others need not: a second run takes a third of the
# time.  Entries are found by the program and the versions of JAX and XLA.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import contextlib  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

pytest_plugins = ["tests.laws.plugin"]


def _resident():
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


_STEP = 700 * 2**20
_kept = [_resident()]


@pytest.fixture(autouse=True)
def bounded_memory():
    """Programs are dropped when they have grown by _STEP: JAX keeps all, 37 MB a test on average.

    Not after every test, for tests of one file share programs.
    """
    yield
    if _resident() > _kept[0] + _STEP:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # no glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        _kept[0] = _resident()


@contextlib.contextmanager
def uncached():
    """No program comes from the cache: XLA's CPU backend runs those of several devices wrongly.

    Read back from disk, a program with collectives in nested loops gives wrong numbers now and
    then (jaxlib 0.10.2); the same program just compiled never does.
    """
    used = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", used)
    compilation_cache.reset_cache()


@pytest.fixture
def fresh_programs():
    with uncached():
        yield


@pytest.fixture(scope="module")
def fresh_programs_everywhere():
    """For a whole module, and the processes that it starts."""
    with uncached(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
        yield


@pytest.fixture
def in_their_own_dtype(monkeypatch):
    """Once called, the dense form computes everything in its inputs' dtype: the naive formula."""
    from attnjax.core import numerics
    from attnjax.core.pairwise import request
    from attnjax.core.recurrence import linear

    def narrow():
        for module in (request, linear, numerics):
            monkeypatch.setattr(module, "working_dtype", lambda dtype: dtype)

    return narrow
