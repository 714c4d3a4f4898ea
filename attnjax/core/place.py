"""Where the tokens of a sequence are: all here, or shared among the devices of a mesh axis.

An implementation that runs across devices has an attribute `tokens`, a `Tokens`.  What an op does
over all tokens besides attention goes through it: `running_sum(x, impl)` is right wherever `impl`
has the tokens.
"""

from typing import Any, Protocol

import jax.numpy as jnp

from attnjax.typing import Array


class Tokens(Protocol):
    """What one has to know about tokens elsewhere."""

    def lengths(self, T: int, S: int) -> tuple[int, int]:
        """The lengths of the sequences of which T queries and S keys are here."""
        ...

    def columns(self, S: int) -> int:
        """How many keys a pair operand has columns for."""
        ...

    def running_sum(self, x: Array, axis: int) -> Array:
        """The sum over all tokens up to each one here."""
        ...


class Here:
    """All tokens are here, in order."""

    def lengths(self, T: int, S: int) -> tuple[int, int]:
        return T, S

    def columns(self, S: int) -> int:
        return S

    def running_sum(self, x: Array, axis: int) -> Array:
        return jnp.cumsum(x, axis=axis)


HERE = Here()


def tokens_of(impl: Any) -> Tokens:
    """Where an implementation has the tokens."""
    return getattr(impl, "tokens", HERE)


def running_sum(x: Array, impl: Any = None, *, axis: int = 1) -> Array:
    """The sum over the tokens up to each, as `jnp.cumsum`, wherever `impl` has the tokens.

    Inside `jax.shard_map`, x holds this device's tokens and `impl` is a strategy such as
    `parallel.Ring("sp", "zigzag")`: the sum runs in the order of the text, whatever the layout.
    """
    return tokens_of(impl).running_sum(x, axis)
