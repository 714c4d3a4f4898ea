"""Feature maps for linear attention: phi(q).phi(k) stands where softmax has exp(q.k).

A map is a function of the last axis, (...,H) -> (...,R).  Maps made of exponentials come as their
logarithms, so that the caller can take off a maximum before the exp: any number for a query, since
a normalized output does not depend on it, and for the keys `running_max`, which does not look
ahead.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.core.recurrence.documents import Packed
from attnjax.core.sharding import on_any_mesh, sharding_of
from attnjax.typing import Array, Float

FeatureMap = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """x as it is."""
    return x


def elu1(x: Array) -> Array:
    """elu(x) + 1 > 0.  Katharopoulos et al. 2020, arXiv:2006.16236."""
    return jax.nn.elu(x) + 1.0


relu: FeatureMap = jax.nn.relu
"""max(x, 0)."""


def relu2(x: Array) -> Array:
    """max(x, 0)^2."""
    return jnp.square(jax.nn.relu(x))


exp: FeatureMap = jnp.exp
"""exp(x), elementwise."""


def log_normal(scale: float | Array) -> FeatureMap:
    """exp(scale x), elementwise.  Nahshan et al. 2023, arXiv:2311.13541."""
    return lambda x: jnp.exp(scale * x)


def cosine(x: Array) -> Array:
    """x / |x|: products are cosines; zero stays zero, with gradient zero.

    A token with a NaN or infinity gives NaN, but no gradient: a mask may still hide it.
    """
    fine = jnp.isfinite(x).all(axis=-1, keepdims=True)
    x = jnp.where(fine, x, 0.0)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    unit = jnp.where(square > 0, x * lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.where(fine, unit, jnp.nan)


def standardize(x: Array) -> Array:
    """(x - mean) / standard deviation over the features; a constant vector becomes zero."""
    return math.sqrt(x.shape[-1]) * cosine(x - jnp.mean(x, axis=-1, keepdims=True))


def softmax(x: Array) -> Array:
    """softmax over the features of a token.  Shen et al. 2018, arXiv:1812.01243 (of queries)."""
    return jax.nn.softmax(x, axis=-1)


def taylor(order: int = 2) -> FeatureMap:
    """Features with phi(q).phi(k) = sum_{l <= order} (q.k)^l / l!: R = 1 + H + ... + H^order."""
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"taylor: order is {order!r}, expected an integer of at least 0")

    @on_any_mesh
    def phi(x: Array) -> Array:
        powers = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
        for _ in range(order):
            power = powers[-1][..., None] * x[..., None, :]
            powers.append(power.reshape(*x.shape[:-1], power.shape[-2] * power.shape[-1]))
        scaled = [p / math.sqrt(math.factorial(l)) for l, p in enumerate(powers)]
        return jnp.concatenate(scaled, axis=-1)

    return phi


def orthogonal_rows(key: Array, features: int, width: int) -> Float[Array, "R H"]:
    """Gaussian rows, orthogonal within each block of `width`: the projection of `log_favor`.

    Directions are those of a random orthogonal matrix, lengths those of Gaussian vectors, so each
    row alone is standard normal.
    """
    direction_key, length_key = jax.random.split(key)
    blocks = jax.random.orthogonal(direction_key, width, (-(-features // width),))
    lengths = jnp.linalg.norm(jax.random.normal(length_key, (features, width)), axis=-1)
    return blocks.reshape(-1, width)[:features] * lengths[:, None]


def log_favor(projection: Float[Array, "R H"]) -> FeatureMap:
    """W x - |x|^2 / 2 - log(R) / 2, whose exp has the mean exp(q.k) over W for phi(q).phi(k).

    Choromanski et al. 2020, arXiv:2009.14794 (FAVOR+: positive random features).
    """
    R = projection.shape[0]

    def log_phi(x: Array) -> Array:
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        return _project(x, projection) - square / 2 - math.log(R) / 2

    return log_phi


def trigonometric(projection: Float[Array, "R H"]) -> FeatureMap:
    """exp(|x|^2 / 2) [cos W x, sin W x] / sqrt(R): the mean is exp(q.k), too, but signs vary.

    Rahimi and Recht's random Fourier features, the unstable baseline of FAVOR+: their error is
    largest where exp(q.k) is small, which makes sums of weights come out near zero.
    """
    R = projection.shape[0]

    def phi(x: Array) -> Array:
        y = _project(x, projection)
        length = jnp.exp(jnp.sum(jnp.square(x), axis=-1, keepdims=True) / 2) / math.sqrt(R)
        return length * jnp.concatenate([jnp.cos(y), jnp.sin(y)], axis=-1)

    return phi


def random_relu(projection: Float[Array, "R H"], eps: float = 1e-3) -> FeatureMap:
    """(max(W x, 0) + eps) / sqrt(R): the ReLU kernel of generalized attention, arXiv:2009.14794."""
    return lambda x: (jax.nn.relu(_project(x, projection)) + eps) / math.sqrt(projection.shape[0])


def _project(x: Array, projection: Array) -> Array:
    return jnp.matmul(x, projection.T.astype(x.dtype), precision=lax.Precision.HIGHEST)


def log_hedgehog(w: Float[Array, "N H R"]) -> FeatureMap:
    """[x W, -x W] for each head, x (B,T,N,H) -> (B,T,N,2R); W is learned.

    Zhang et al. 2024, arXiv:2402.04347: exp of it, trained to mimic softmax attention.
    """

    def log_phi(x: Array) -> Array:
        y = jnp.einsum("BTNH,NHR->BTNR", x, w.astype(x.dtype), precision=lax.Precision.HIGHEST)
        return jnp.concatenate([y, -y], axis=-1)

    return log_phi


class RunningMax(NamedTuple):
    """What `running_max` gives."""

    m: Float[Array, "B S N"]
    decay: Float[Array, "B S N"]
    last: Float[Array, "B N"]  # m after all tokens, wherever they are: `before` of the next run


@on_any_mesh
def running_max(
    log_write: Float[Array, "B S N"],
    log_decay: Float[Array, "B S N"] | None = None,
    before: Float[Array, "B N"] | None = None,
    *,
    documents: Packed | None = None,
    impl: Any = None,
) -> RunningMax:
    """The reference m_t = max(m_{t-1} + log_decay_t, log_write_t), and the decay that it asks for.

    A state that adds exp(log_write_t) can be kept as exp(-m_t) S_t: write exp(log_write_t - m_t),
    which is at most 1, and decay by `decay`, log_decay_t + m_{t-1} - m_t <= 0.  `before` is m_0,
    which a split run hands on: the `last` of the segment before.  Give log_write through
    `lax.stop_gradient` where results do not depend on m; with a log_decay that is trained,
    differentiate through it instead, or the decay loses its gradient.  m is finite also where
    nothing has been written, log_write = -inf.

    With `documents` m begins anew with each: its first token's is log_write_t, and the decay, which
    a state that begins anew does not feel, is zero.  Padding leaves m as it is.
    With the `impl` of an op m is that of the whole text, on whatever devices it is.
    """
    sharding = sharding_of(impl)
    least = jnp.finfo(log_write.dtype).min / 4
    log_write = jnp.maximum(log_write, least)
    decay = jnp.zeros_like(log_write) if log_decay is None else log_decay
    carry = decay
    if documents is not None:
        log_write = jnp.where(documents.real[..., None], log_write, least)
        carry = jnp.where(documents.starts[..., None], _FORGET, documents.without_padding(decay))
        decay = documents.without_first(documents.without_padding(decay))

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] + b[0], jnp.maximum(a[1] + b[0], b[1])

    whole = lambda x: sharding.gathered(x, 1)
    total, m = lax.associative_scan(join, (whole(carry), whole(log_write)), axis=1)
    if before is None:
        first = m[:, :1]  # there is no state yet, so the first decay does not matter
    else:
        first = before[:, None]
        m = jnp.maximum(m, first + total)
    earlier = jnp.concatenate([first, m[:, :-1]], axis=1)
    last = m[:, -1]
    m, earlier = sharding.own(m, 1), sharding.own(earlier, 1)
    # rounding may leave it above zero
    asked = jnp.minimum(decay + earlier - m, 0.0)
    return RunningMax(m, asked if documents is None else documents.without_first(asked), last)


_FORGET = -1e30  # a log decay beside which every number counts as nothing
