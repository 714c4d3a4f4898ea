"""The command line of an experiment: a frozen dataclass is the whole of it."""

import dataclasses
import difflib
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import tyro

from attnjax.lab.errors import UserError

C = TypeVar("C")
Choice = TypeVar("Choice")


def run_cli(main: Callable[[C], object], doc: str | None, full: C, quick: C) -> None:
    """Reads a config from the command line and calls `main` with it.

    Defaults are those of `full`, or of `quick` where `--quick` is given; any other option
    overrides them.  A UserError is shown as one line (exit status 2).  After an interruption the
    same command goes on where it stopped (exit status 130).
    """
    arguments = [a for a in sys.argv[1:] if a != "--quick"]
    default = quick if len(arguments) < len(sys.argv) - 1 else full
    about = f"{(doc or '').strip()}\n\n--quick: smaller defaults for all of the options below."
    try:
        main(tyro.cli(type(default), default=default, args=arguments, description=about))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


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

    It covers the fields of `config`, whatever `more` is given, and the version of JAX.
    """
    fields = dataclasses.asdict(config)
    text = json.dumps([fields, more, jax.__version__], sort_keys=True, default=str)
    return f"{zlib.crc32(text.encode()):08x}"
