"""Functions handed to the engine: what they read is never stale, what they carry is looked at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, mods
from attnjax.core.closures import by_value, traced_closure
from attnjax.core.pairwise.blockwise import Blockwise
from tests.helpers import close, qkv

LEVEL = 1.0
TILES = Blockwise(4, 4)  # compiled, and found again


class Holder:
    shared = 1.0

    def __init__(self):
        self.own, self.table = 1.0, [1.0]

    def times(self, s):
        return s * self.own * self.shared * self.table[0]


def helper(s):
    return s * LEVEL


def set_level(value):
    global LEVEL
    LEVEL = value


def reading():
    """A function that multiplies a score by 1, and how to make it another number."""
    holder, held, array = Holder(), {"a": 1.0}, np.ones(1, np.float32)
    number = 1.0

    def change(value):
        nonlocal number
        number = value

    def by_default(s, held=held):
        return s * held["a"]

    inside = lambda s: s * number
    return {
        "global": (lambda s: helper(s), set_level),
        "dict": (lambda s: s * held["a"], lambda x: held.update(a=x)),
        "array": (lambda s: s * array[0], lambda x: array.__setitem__(0, x)),
        "variable": (lambda s: s * number, change),
        "nested": (lambda s: inside(s), change),
        "default": (by_default, lambda x: held.update(a=x)),
        "partial": (functools.partial(lambda h, s: s * h["a"], held), lambda x: held.update(a=x)),
        "method": (holder.times, lambda x: setattr(holder, "own", x)),
        "list of an object": (holder.times, lambda x: holder.table.__setitem__(0, x)),
        "class": (holder.times, lambda x: setattr(Holder, "shared", x)),
    }


@pytest.mark.parametrize("name", reading())
def test_a_mod_that_reads_state_is_never_stale(name):
    q, k, v = qkv(1, 9, 2, 4)
    fn, change = reading()[name]
    run = lambda: attend(q, k, v, mods=(mods.mod(fn),), impl=TILES)
    try:
        close(run(), attend(q, k, v, scale=0.5), 1e-6)
        change(3.0)
        close(run(), attend(q, k, v, scale=1.5), 1e-6)
    finally:
        change(1.0)


def test_a_mask_that_reads_state_is_never_stale():
    q, k, v = qkv(1, 9, 2, 4)
    far = [2]
    mask = masks.fn(lambda i, j: (i - j <= far[0]) & (j <= i))
    for far[0] in (2, 5, 2):
        close(
            attend(q, k, v, mask=mask, impl=TILES),
            attend(q, k, v, mask=masks.window(far[0])),
            1e-6,
        )


def test_functions_of_one_code_and_the_same_values_are_equal():
    make = lambda n: lambda s: s + n
    assert by_value(make(1.0)) == by_value(make(1.0)) != by_value(make(2.0))
    assert hash(by_value(make(1.0))) == hash(by_value(make(1.0)))
    assert by_value(make(1)) != by_value(make(True)) and by_value(make(np.nan)) == by_value(
        make(np.nan)
    )
    assert by_value(jnp.add) is jnp.add and by_value(mods._alibi) is mods._alibi
    one, other = [], []
    assert by_value(make(one)) != by_value(make(other))  # whichever it writes to


def carriers(x):
    holder = Holder()
    holder.table = [{"deep": x}]
    inside = lambda s: s + x

    def default(s, c=x):
        return s + c

    def keyword(s, *, c=(x,)):
        return s + c[0]

    return {
        "closure": inside,
        "nested": lambda s: inside(s),
        "default": default,
        "keyword": keyword,
        "method": holder.times,
        "object": lambda s: s + holder.table[0]["deep"],
        "partial": functools.partial(lambda c, s: s + c, x),
        "partial of a method": functools.partial(holder.times),
    }


@pytest.mark.parametrize("name", carriers(0.0))
def test_traced_arrays_are_found_wherever_a_function_carries_them(name):
    q, k, v = qkv(1, 3, 1, 4)
    assert traced_closure(carriers(0.0)[name]) is None

    def run(x):
        return attend(q, k, v, mods=(mods.mod(carriers(x)[name]),)).sum()

    with pytest.raises(ValueError, match="closes over a traced array float32.*expected it as an"):
        jax.grad(run)(1.0)
    with pytest.raises(ValueError, match="masks.fn: .* closes over a traced array"):
        jax.jit(lambda x: masks.fn(carriers(x)[name]))(1.0)


def test_a_function_that_reads_too_much_is_refused():
    numbers = list(map(str, range(3)))
    numbers += [[i] for i in range(10_001)]
    with pytest.raises(ValueError, match="reads more than 10000 values"):
        by_value(lambda s: s + len(numbers))
