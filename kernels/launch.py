"""Triton kernels from JAX: on a GPU through jax-triton, anywhere in Triton's interpreter.

A kernel is a hand-written file of Triton functions, a `body`, some of whose functions are holes:
what a call needs in their place is generated as text (`emit`) and appended, so that later
definitions win.  Triton reads the source of what it compiles, so each program is a file in a cache
folder ($ATTNJAX_CACHE, else ~/.cache/attnjax), named by its content.

    launch("flash/body.py", "forward", pieces, {"q": q, "xs": (x, y), "T": 128}, {"o": shape},
           grid=(8, 4), warps=4, stages=2)

Arrays reach the function as pointers, everything else as a literal of the program.  Shapes are
known when JAX traces, so nothing else is passed at run time.

This is the only module that knows jax-triton, whose releases differ; nothing of Triton is imported
before a kernel is wanted.
"""

import contextlib
import contextvars
import functools
import hashlib
import importlib.util
import inspect
import itertools
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Program:
    """One kernel for one set of shapes.

    text     the whole source; `entry` is what runs
    inputs   dtypes of the pointers that are read, `outputs` shapes and dtypes of those written
    grid     number of programs along up to three axes
    warps    of 32 threads for each program; `stages` of its software pipeline
    """

    name: str
    text: str
    inputs: tuple[str, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    grid: tuple[int, ...]
    warps: int
    stages: int


_recorder: contextvars.ContextVar[list[Program] | None] = contextvars.ContextVar(
    "attnjax_programs", default=None
)


@contextlib.contextmanager
def programs() -> Iterator[list[Program]]:
    """Collects the programs launched inside, traced ones included: for `usage`, and to read.

    What has been compiled is forgotten, as a call that was traced before is not traced again.
    """
    jax.clear_caches()
    seen: list[Program] = []
    token = _recorder.set(seen)
    try:
        yield seen
    finally:
        _recorder.reset(token)


def launch(
    body: str,
    function: str,
    pieces: str,
    arguments: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    interpret: bool = False,
) -> dict[str, Any]:
    """Runs function(**arguments, **outputs) of a body and gives the outputs, filled.

    body        file of the kernel, relative to this package
    pieces      source of functions that take the place of those in the body
    arguments   arrays, numbers, None, and tuples of these
    outputs     `jax.ShapeDtypeStruct`s, and tuples of them; what is not written is undefined
    interpret   run by Triton's interpreter, on NumPy, inside `jax.pure_callback`
    """
    inputs, written = [], []

    def spell(x: Any) -> str:
        if isinstance(x, tuple):
            return f"({''.join(spell(each) + ', ' for each in x)})"
        if isinstance(x, jax.ShapeDtypeStruct):
            written.append(x)
            return f"o{len(written) - 1}"
        if isinstance(x, jax.Array | np.ndarray):
            inputs.append(_storable(x))
            return f"i{len(inputs) - 1}"
        return repr(x)

    given = ", ".join(f"{k}={spell(x)}" for k, x in {**arguments, **outputs}.items())
    pointers = [f"i{n}" for n in range(len(inputs))] + [f"o{n}" for n in range(len(written))]
    text = (
        f"{(HERE / body).read_text()}\n\n{pieces}\n\n"
        f"@triton.jit\ndef entry({', '.join(pointers)}):\n    {function}({given})\n"
    )
    program = Program(
        function, text, tuple(jnp.dtype(x.dtype).name for x in inputs), tuple(written), grid,
        warps, stages,
    )  # fmt: skip
    if (told := _recorder.get()) is not None:
        told.append(program)
    run = _interpreted if interpret else _on_gpu
    filled = iter(run(program, inputs))

    def fill(x: Any) -> Any:  # in the order of `spell`; jax.tree sorts the names
        return tuple(map(fill, x)) if isinstance(x, tuple) else next(filled)

    return {name: fill(x) for name, x in outputs.items()}


def _storable(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.int8) if x.dtype == jnp.bool_ else x


# ------------------------------------------------------------------------------ files, modules


@functools.cache
def _folder() -> Path:
    wanted = os.environ.get("ATTNJAX_CACHE")
    folder = Path(wanted) if wanted else Path.home() / ".cache" / "attnjax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="attnjax-"))


def path_of(program: Program) -> Path:
    """The program as a file."""
    digest = hashlib.sha256(program.text.encode()).hexdigest()[:16]
    path = _folder() / f"{program.name}_{digest}.py"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".py", delete=False) as file:
            file.write(program.text)
        os.replace(file.name, path)  # at once: another process may read it
    return path


@functools.cache
def _module(path: Path, interpret: bool) -> ModuleType:
    """The file as a module whose functions are compiled, or interpreted."""
    from triton import knobs

    name = f"{path.stem}{'_interpreted' if interpret else ''}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with knobs.runtime.scope():
        knobs.runtime.interpret = interpret
        spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------ on a GPU


@functools.cache
def _jax_triton() -> Any:
    import jax_triton  # pyright: ignore[reportMissingImports]

    return jax_triton


@functools.cache
def _import_failure() -> str | None:
    try:
        _jax_triton()
    except Exception as error:  # 0.3 raises whatever its CUDA library raises
        return f"jax-triton cannot be imported: {error}"
    ours, triton = (version(name) for name in ("jax-triton", "triton"))
    number = lambda text: tuple(int(n) for n in text.split(".")[:2])
    if number(ours) >= (0, 4) and number(triton) < (3, 7):  # it imports, and fails when it compiles
        return f"jax-triton {ours} needs Triton 3.7, this is {triton}; jax-triton 0.3.1 takes it"
    return None


def missing() -> str | None:
    """Why kernels cannot run here, or None: no GPU, no jax-triton, or one that does not load."""
    if jax.default_backend() != "gpu":
        return f"needs a GPU, this process runs on {jax.default_backend()}"
    return _import_failure()


def capability() -> int:
    """Of the NVIDIA GPU here, 90 for 9.0; that of a Hopper where there is none."""
    told = re.fullmatch(r"(\d+)\.(\d)", getattr(jax.devices()[0], "compute_capability", ""))
    return int(told[1] + told[2]) if told else 90


def processors() -> int:
    """Multiprocessors of the GPU here; without one those of an H100."""
    return getattr(jax.devices()[0], "core_count", None) or 132


def _on_gpu(program: Program, inputs: Sequence[jax.Array]) -> Sequence[jax.Array]:
    triton_call = _jax_triton().triton_call
    known = inspect.signature(triton_call).parameters
    shapes = "out_type" if "out_type" in known else "out_shape"  # renamed in jax-triton 0.4
    return triton_call(
        *inputs,
        kernel=_module(path_of(program), False).entry,
        grid=program.grid,
        num_warps=program.warps,
        num_stages=program.stages,
        name=program.name,
        **{shapes: program.outputs},
    )


# -------------------------------------------------------------------------- in the interpreter


class _Memory:
    """What Triton's interpreter asks of an array, over a NumPy one: it reads memory by address."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.dtype = x, x.dtype

    def data_ptr(self) -> int:
        return self.x.ctypes.data

    def untyped_storage(self) -> "_Memory":
        return self

    def cpu(self) -> "_Memory":
        return self

    def new_empty(self, *_: Any, **__: Any) -> "_Memory":
        return _Memory(self.x)

    def set_(self, storage: "_Memory", *_: Any) -> None:
        self.x = storage.x

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.x.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(n // self.x.itemsize for n in self.x.strides)

    def copy_(self, other: "_Memory") -> None:
        assert self.x is other.x  # the interpreter wrote where it had to


def _interpreted(program: Program, inputs: Sequence[jax.Array]) -> Sequence[jax.Array]:
    entry = _module(path_of(program), True).entry

    def run(*given: Any) -> tuple[np.ndarray, ...]:
        # What a kernel does not write must not be read: NaN, or the largest integer, shows it.
        written = [_undefined(x) for x in program.outputs]
        read = [np.ascontiguousarray(x) for x in given]
        with _interpreter(), np.errstate(all="ignore"):
            entry[program.grid](*map(_Memory, itertools.chain(read, written)))
        return tuple(written)

    return jax.pure_callback(run, program.outputs, *inputs)


_one_at_a_time = threading.Lock()  # the interpreter keeps the program's number in a global


@contextlib.contextmanager
def _interpreter() -> Iterator[None]:
    """Triton's own library (tl.max, tl.sum ...) interpreted; it is compiled where it was imported.

    TRITON_INTERPRET=1 would do so for the whole process, which could then compile nothing.
    """
    import triton.experimental.gluon.language  # noqa: F401  takes tl's functions when first imported
    from triton import language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    touched = (
        tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base,
        interpreter, interpreter.InterpreterBuilder,
    )  # fmt: skip
    with _one_at_a_time:
        before = [dict(vars(each)) for each in touched]
        interpreted: dict[Any, Any] = {}
        for module in (tl, tl.standard):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    new = interpreted.setdefault(
                        value.fn, interpreter.InterpretedFunction(value.fn)
                    )
                    setattr(module, name, new)
        interpreter._convert_float = _convert_float
        setattr(interpreter.InterpreterBuilder, "create_dot", _dot)  # noqa: B010
        try:
            yield
        finally:  # the interpreter leaves behind what it changes, and nothing compiles after that
            for each, names in zip(touched, before, strict=True):
                for name, value in names.items():
                    if vars(each).get(name) is not value:
                        setattr(each, name, value)


# Triton 3.9 interprets bfloat16 as the integers of its bits: right for loads and stores, wrong for
# products, and its conversions truncate.


def _floats(bits: np.ndarray, dtype: Any) -> np.ndarray:
    return bits.view(jnp.bfloat16) if dtype.name == "bf16" else bits


def _convert_float(x: np.ndarray, old: Any, new: Any, rounding: Any) -> np.ndarray:
    to = {"bf16": jnp.bfloat16, "fp16": np.float16, "fp32": np.float32, "fp64": np.float64}
    return np.ascontiguousarray(_floats(x, old).astype(to[new.name]))


def _dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    from triton.runtime.interpreter import TensorHandle

    left, right = (_floats(x.data, x.dtype).astype(d.data.dtype) for x in (a, b))
    return TensorHandle(np.matmul(left, right) + d.data, d.dtype.scalar)


def _undefined(x: jax.ShapeDtypeStruct) -> np.ndarray:
    fill = np.nan if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).max
    return np.full(x.shape, fill, x.dtype)


# ------------------------------------------------------------------- compiled without any GPU

_POINTERS = {
    "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int32": "*i32", "int8": "*i8",
}  # fmt: skip


@dataclass(frozen=True)
class Usage:
    """What a compiled program takes of a multiprocessor."""

    registers: int  # of each thread
    spilled: int  # bytes of each thread, loads and stores
    shared: int  # bytes of each program
    ptx: str


def usage(program: Program, capability: int) -> Usage:
    """Compiles a program for a GPU of compute capability 80, 90, ...; needs none."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as today; unset, Triton 3.9 warns
    kernel = _module(path_of(program), False).entry
    dtypes = [*program.inputs, *(jnp.dtype(x.dtype).name for x in program.outputs)]
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature={n: _POINTERS[d] for n, d in zip(names, dtypes, strict=True)},
        constexprs={},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(names))},  # XLA aligns arrays
    )
    options = {"num_warps": program.warps, "num_stages": program.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _assembled(compiled.asm["ptx"], capability)
    return Usage(registers, spilled, compiled.metadata.shared, compiled.asm["ptx"])


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes, from the report of Triton's own ptxas."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(capability).path
    target = f"sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        told = subprocess.run(
            [tool, "-v", f"--gpu-name={target}", source, "-o", f"{source}.cubin"],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    number = lambda pattern: sum(int(n) for n in re.findall(pattern, told))
    return number(r"Used (\d+) registers"), number(r"(\d+) bytes spill (?:stores|loads)")
