"""Which implementation runs a call: the choice that the engines share, and `explain`."""

import contextlib
import contextvars
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

Fn = TypeVar("Fn", bound=Callable[..., Any])


@runtime_checkable
class Implementation(Protocol):
    """A way to execute a call of an engine; any object with these two methods may be `impl`."""

    def supported(self, request: Any) -> str | None:
        """None if it can run the call, else the reason why not."""
        ...

    def run(self, request: Any) -> Any:
        """The result, laid out as the engine says, in the working dtype."""
        ...


Impl = str | Implementation | None


@dataclass(frozen=True)
class Choice:
    """One implementation for one call: whether it runs, could, or why not."""

    implementation: str
    runs: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: for each call of an engine, a headline and the choices."""

    op: str
    calls: tuple[tuple[str, tuple[Choice, ...]], ...]

    def __str__(self) -> str:
        lines = [self.op] if self.calls else [f"{self.op}: no call of an engine"]
        for headline, choices in self.calls:
            lines += ["", headline]
            width = max(len(c.implementation) for c in choices)
            lines += [
                f"  {'->' if c.runs else '  '} {c.implementation:{width}}  {c.reason}"
                for c in choices
            ]
        return "\n".join(lines)


_recorder: contextvars.ContextVar[list[tuple[str, tuple[Choice, ...]]] | None] = (
    contextvars.ContextVar("attnjax_recorder", default=None)
)


def pick(
    engine: str,
    impl: Impl,
    request: Any,
    known: Mapping[str, Implementation],
    choose: Callable[[Any], Implementation],
    headline: Callable[[Any], str],
) -> Implementation:
    """The implementation that `impl` names, or `choose(call)` for None; `explain` is told.

    Raises ValueError for an unknown name and for an implementation that cannot run the call,
    TypeError for an `impl` of another kind.
    """
    chosen = choose(request) if impl is None else _named(engine, impl, request, known)
    if (told := _recorder.get()) is not None:
        told.append((headline(request), _choices(request, impl, chosen, known)))
    return chosen


def _named(
    engine: str, impl: Any, request: Any, known: Mapping[str, Implementation]
) -> Implementation:
    if isinstance(impl, str):
        if impl not in known:
            near = difflib.get_close_matches(impl, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{engine}: impl is {impl!r}, expected None, an Implementation or one of "
                f"{', '.join(map(repr, known))}{hint}"
            )
        name, impl = impl, known[impl]
    elif not isinstance(impl, Implementation) or isinstance(impl, type):
        raise TypeError(
            f"{engine}: impl is {impl!r}, expected None, a name or an object with supported and run"
        )
    else:
        name = repr(impl)
    if (reason := impl.supported(request)) is not None:
        raise ValueError(f"{engine}: impl {name!r} does not run this call: {reason}")
    return impl


def _choices(
    request: Any, impl: Impl, chosen: Implementation, known: Mapping[str, Implementation]
) -> tuple[Choice, ...]:
    why = "fastest for this shape here" if impl is None else "asked for"
    choices = []
    for name, candidate in known.items():
        runs = candidate == chosen
        reason = candidate.supported(request)
        text = f"runs: {why}" if runs else f"cannot: {reason}" if reason else "could run"
        choices.append(Choice(name, runs, text))
    if not any(c.runs for c in choices):
        choices.append(Choice(repr(chosen), True, f"runs: {why}"))
    return tuple(choices)


def compiled(*static: str) -> Callable[[Fn], Fn]:
    """Makes one program of a function, which calls outside jit compile once; `static` by value.

    For functions that loop over what they close over, which JAX would compile in every call.
    """

    def of(fn: Fn) -> Fn:
        program = jax.jit(fn, static_argnames=static)

        @functools.wraps(fn)
        def called(*args: Any, **kwargs: Any) -> Any:
            told = _recorder.get() is not None  # the calls within are to be seen
            return (fn if told else program)(*args, **kwargs)

        return called  # type: ignore[return-value]

    return of


@contextlib.contextmanager
def _recording() -> Iterator[list[tuple[str, tuple[Choice, ...]]]]:
    calls: list[tuple[str, tuple[Choice, ...]]] = []
    token = _recorder.set(calls)
    try:
        yield calls
    finally:
        _recorder.reset(token)


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which implementation `op(*args, **kwargs)` runs, and why each of the others does not.

    The op is traced, not executed; print the result for a table.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))

    def traced(arrays: list[Any]) -> Any:
        rest = iter(arrays)  # arrays are traced; everything else stays the Python value it is
        merged = [next(rest) if isinstance(x, jax.Array) else x for x in leaves]
        given, named = jax.tree.unflatten(tree, merged)
        return op(*given, **named)

    with _recording() as calls:
        jax.eval_shape(traced, [x for x in leaves if isinstance(x, jax.Array)])
    return Explanation(getattr(op, "__name__", repr(op)), tuple(calls))
