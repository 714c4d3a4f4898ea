"""What command lines of experiments share: one-line errors, names chosen, keys of runs."""

import contextlib
import dataclasses
import difflib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import tyro

from attnjax.lab.errors import UserError

C = TypeVar("C")
Choice = TypeVar("Choice")

EFFORTS = ("full", "quick", "smoke")
_ABOUT = (
    "--quick: a minute, smaller defaults for all of the options below.\n"
    "--smoke: seconds, only shows that everything runs."
)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """A UserError is shown as one line (exit status 2); an interruption says how to go on (130).

    An interruption leaves at once: whatever is to be kept has been written, and an interpreter that
    shuts down while XLA compiles in another thread may end in a segmentation fault.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)


def effort_of(arguments: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """("full" | "quick" | "smoke", the other arguments) of a command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = [effort for effort in EFFORTS if f"--{effort}" in given]
    rest = [a for a in given if a.removeprefix("--") not in EFFORTS or not a.startswith("--")]
    return (chosen[-1] if chosen else "full"), rest


def read_config(doc: str | None, default: C, arguments: Sequence[str]) -> C:
    """The settings that a command line gives; those it leaves out are the default's."""
    about = f"{(doc or '').strip()}\n\n{_ABOUT}"
    return tyro.cli(type(default), default=default, args=arguments, description=about)


def run_cli(main: Callable[[C], object], doc: str | None, full: C, quick: C) -> None:
    """Calls `main` with the settings of the command line, for what is no study."""
    effort, rest = effort_of()
    with one_line_errors():
        main(read_config(doc, full if effort == "full" else quick, rest))


def choose(argument: str, names: Iterable[str], choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """The entries of `choices` with these names, in their order.

    Raises UserError for no name, a name given twice, and an unknown one, naming its nearest.
    """
    names = tuple(names)
    known = ", ".join(choices)
    if not names:
        raise UserError(f"{argument}: got none, expected some of {known}")
    if len(set(names)) < len(names):
        raise UserError(f"{argument}: got {' '.join(names)}, expected each name once")
    for name in names:
        if name not in choices:
            near: list[Any] = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{argument}: got {name!r}, {hint}expected some of {known}")
    return {name: choices[name] for name in names}


def positive(config: Any, names: str) -> None:
    """Raises UserError unless the fields with these names, separated by spaces, are above zero."""
    for name in names.split():
        if getattr(config, name) <= 0:
            raise UserError(f"{name}: got {getattr(config, name)}, expected more than 0")


def run_key(config: Any, *more: object) -> str:
    """A short name of everything that decides a run, so that only its own checkpoints are found.

    It covers the fields of `config`, whatever `more` is given, and the versions of Python, whose
    sources are the usual text, and of JAX.
    """
    fields = dataclasses.asdict(config)
    text = json.dumps([fields, more, sys.version, jax.__version__], sort_keys=True, default=str)
    return f"{zlib.crc32(text.encode()):08x}"
