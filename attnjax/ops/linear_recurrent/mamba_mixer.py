"""MambaMixer: selective mixing along tokens and along channels, with averages of earlier layers.

    t_l = TokenMixer(sum_{i < l} alpha_li t_i + sum_{i < l} beta_li s_i)
    s_l = ChannelMixer(sum_{i <= l} theta_li t_i + sum_{i < l} gamma_li s_i),    t_0 = s_0 = x

A channel mixer is a Mamba block along the channels, forward plus backward, whose width is the
number of tokens.

Paper: Behrouz, Santacatterina and Zabih, "MambaMixer: Efficient Selective State Space Models with
Dual Token and Channel Selection", 2024, arXiv:2403.19888, section 4.
Limits: averages that take the layer before alone make a plain alternating stack.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Draw, Limit, Op, Slot, adjusted, normal
from attnjax.ops.linear_recurrent.selective_mixer import (
    SIZES,
    Mixer,
    both_directions,
    selective_token_mixer,
)
from attnjax.ops.linear_recurrent.selective_ssm import Tokens
from attnjax.typing import Array, Float


class Layer(NamedTuple):
    """A token mixer of width W, and channel mixers of width T, one for each direction."""

    token: Mixer
    forward: Annotated[Mixer, "T E C M"]
    backward: Annotated[Mixer, "T E C M"]


class Averages(NamedTuple):
    """Learned numbers of each layer; entries for layers that are not there yet are not used."""

    alpha: Float[Array, "L L"]
    beta: Float[Array, "L L"]
    theta: Float[Array, "L L+1"]
    gamma: Float[Array, "L L"]


@on_any_mesh
def mamba_mixer(x: Tokens, layers: Sequence[Layer], averages: Averages) -> Tokens:
    """A stack; channels have no order of time, and their mixers see all tokens."""
    tokens = [wide(x)]  # t_0, t_1, ...
    channels = [wide(x)]  # s_0, s_1, ...
    for layer, alpha, beta, theta, gamma in zip(layers, *averages, strict=True):
        average = _average(alpha, tokens) + _average(beta, channels)
        tokens.append(selective_token_mixer(average, layer.token))
        average = _average(theta, tokens) + _average(gamma, channels)
        channels.append(mix_channels(average, layer))
    return channels[-1].astype(x.dtype)


def _average(weights: Float[Array, " L"], outputs: list[Tokens]) -> Tokens:
    """The sum of the outputs that there are, weighted."""
    return jnp.tensordot(wide(weights)[: len(outputs)], jnp.stack(outputs), 1)


def mix_channels(x: Tokens, layer: Layer) -> Tokens:
    """The selective channel mixer."""
    return both_directions(x.swapaxes(1, 2), layer.forward, layer.backward).swapaxes(1, 2)


def _stack(x: Tokens, layers: tuple[Layer, ...], averages: Averages) -> Tokens:
    for layer in layers:
        x = mix_channels(selective_token_mixer(x, layer.token), layer)
    return x


def _two_layers(slot: Slot) -> tuple[Layer, Layer]:
    layer = replace(slot, hint=Layer)
    return layer.tree(), layer.tree()


def _near_one(averages: Averages) -> Averages:
    """So that what mixers make smaller does not vanish in two layers."""
    return Averages(*(1.0 + numbers for numbers in averages))


def _previous(averages: Averages) -> Averages:
    """t_l from s_{l-1} alone, s_l from t_l alone."""
    L = len(averages.alpha)
    none = np.zeros((L, L))
    return Averages(*map(jnp.asarray, (none, np.eye(L), np.eye(L, L + 1, k=1), none)))


OPS = (
    Op(
        mamba_mixer,
        papers=(330,),
        reads="all",
        draw={"x": normal(0.5), "layers": Draw(_two_layers), "averages": adjusted(_near_one)},
        sizes=SIZES | {"L": 2, "L+1": 3},
        limits=(
            Limit(
                "averages of the layer before: a stack", {"averages": adjusted(_previous)}, _stack
            ),
        ),
    ),
)
