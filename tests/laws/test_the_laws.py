"""A law that cannot fail is none: ops that break one are caught by it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, linear_attend, masks
from attnjax.core.pairwise.attend import Impl
from attnjax.op import Op
from attnjax.typing import Array, Float, K, Out, Q, TokenK, TokenV, V
from tests.laws import cases
from tests.laws import test_one_device as laws


def sound(q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None) -> Out:
    return attend(q, k, v, mask=mask, impl=impl)


def sound_oracle(q, k, v, allowed=None):
    from tests.ops.plain import blend, weights

    return blend(weights(q, k, allowed), v)


def leaks_the_future(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    return attend(q, k, v, mask=mask, impl=impl) + 1e-6 * v.mean()


def spreads_nan(q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None) -> Out:
    return attend(q, k, v, mask=mask, impl=impl) + 0 * v.sum()


def fills_empty_rows(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    return attend(q, k, v, mask=mask, impl=impl) + 1e-3


def differs_by_form(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    return attend(q, k, v, mask=mask, impl=impl) * (1.0 if impl == "dense" else 1.001)


def reads_one_key_head(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    return attend(q, k[:, :, :1], v[:, :, :1], mask=mask, impl=impl) * k.shape[2]


@jax.custom_vjp
def _twice(x):
    return x


_twice.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))


def has_a_wrong_gradient(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> Out:
    return attend(_twice(q), k, v, mask=mask, impl=impl)


def is_annotated_wrongly(
    q: Q, k: K, v: V, *, mask: masks.Mask = masks.everything, impl: Impl = None
) -> V:
    return attend(q, k, v, mask=mask, impl=impl)


def forgets_its_state(
    q: Q, k: TokenK, v: TokenV, *, state=None, return_state: bool = False, impl=None
):
    out, state = linear_attend(q, k, v, return_state=True)
    return (out, state) if return_state else out


CAUGHT = {
    leaks_the_future: functools.partial(laws.test_the_future, form="truth"),
    spreads_nan: functools.partial(laws.test_padding_does_not_leak_even_as_nan, form="truth"),
    fills_empty_rows: functools.partial(
        laws.test_rows_with_nothing_allowed_give_zeros_and_no_gradient, form="truth"
    ),
    differs_by_form: laws.test_implementations_agree,
    reads_one_key_head: functools.partial(
        laws.test_grouped_heads_equal_repeated_heads, form="truth"
    ),
    has_a_wrong_gradient: laws.test_gradients,
    is_annotated_wrongly: laws.test_annotations,
    forgets_its_state: functools.partial(
        laws.test_a_run_split_anywhere_equals_the_whole, form="truth"
    ),
}


@pytest.fixture
def listed(monkeypatch):
    def as_op(fn, **record):
        op = Op(fn, **record)
        cases.forget()
        monkeypatch.setitem(cases.BY_NAME, op.name, op)
        return op

    yield as_op
    cases.forget()


@pytest.mark.parametrize(("broken", "law"), CAUGHT.items(), ids=[f.__name__ for f in CAUGHT])
def test_a_broken_op_is_caught(broken, law, listed):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        law(listed(broken))
    assert caught.type.__name__ in ("AssertionError", "TypeCheckError"), caught.value


@pytest.mark.parametrize("broken", list(CAUGHT)[:7], ids=lambda fn: fn.__name__)
def test_a_sound_op_is_not(broken, listed):
    CAUGHT[broken](listed(sound))


def test_what_may_not_be_read_is_a_property(listed):
    """An op that says that it reads all must, and one that says past must not."""
    with pytest.raises(AssertionError):
        laws.test_the_future(listed(sound, reads="past"), "truth")
    with pytest.raises(AssertionError):
        causal = functools.partial(sound, mask=masks.causal)
        functools.update_wrapper(causal, sound)
        laws.test_the_future(listed(causal, reads="all"), "truth")


def test_a_sample_is_drawn_argument_by_argument():
    op = Op(sound)
    first, again, other = op.sample(1), op.sample(1), op.sample(2)
    assert list(first) == ["q", "k", "v"] and first["k"].shape == (2, 9, 2, 8)
    assert all(np.array_equal(first[n], again[n]) for n in first)
    assert not any(np.array_equal(first[n], other[n]) for n in first)
    changed = op.sample(1, {"k": jnp.zeros(3)}, N=6)
    assert changed["k"].shape == (3,) and changed["q"].shape == (2, 9, 6, 8)
    assert np.array_equal(changed["v"], first["v"])


def test_a_tuple_of_arrays_is_no_array_argument():
    """As the network of a memory is: its members may have any number, so none tells a shape."""

    def op(q: Q, layers: tuple[Float[Array, "N H D"], ...], bias: V | None = None) -> Out:
        raise NotImplementedError

    assert set(Op(op).shapes) == {"q", "bias"}
