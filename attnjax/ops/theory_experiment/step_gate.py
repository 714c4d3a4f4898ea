"""A residual branch as a step of a flow: a gate that sees where it is and where it goes.

    out = x + a f(x),    a = sigmoid(W_2 relu(W_1 [m(x); m(f); m(f) - m(x)] + b_1) + b_2),
                         m the mean over the tokens, a for each channel
    stiffness_l = |x_{l+1} - x_l| / |x_l|     of the states x_0 .. x_L of a network's layers

Where the flow is stiff, steps should be short.  Squeeze-and-excitation is the same gate of m(f)
alone.

Paper: Huang et al., "Understanding Self-attention Mechanism via Dynamical System Perspective",
2023, arXiv:2308.09939, as its abstract has it.
Limits: W_2 = 0 and b_2 = 0 is half a step; states that stay are not stiff.
Differs: neither the text nor code was at hand: the gate's inputs and the ratio are our reading.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.core.numerics import Affine, divide, wide
from attnjax.core.sharding import on_any_mesh
from attnjax.op import Limit, Op, adjusted
from attnjax.typing import Array, Float

Tokens = Float[Array, "B T W"]


class StepGate(NamedTuple):
    """Learned."""

    inner: Annotated[Affine, "3W E"]
    outer: Annotated[Affine, "E W"]


@on_any_mesh
def step_gate(x: Tokens, step: Tokens, gate: StepGate) -> Tokens:
    """x, and the step times a number for each channel; tokens may be the cells of an image."""
    here, there = wide(x).mean(1), wide(step).mean(1)
    seen = jnp.concatenate([here, there, there - here], axis=-1)
    length = jax.nn.sigmoid(gate.outer(jax.nn.relu(gate.inner(seen))))
    return (wide(x) + length[:, None] * wide(step)).astype(x.dtype)


@on_any_mesh
def stiffness(states: Float[Array, "L B T W"]) -> Float[Array, "l B"]:
    """How far each of l = L - 1 layers moves an example, beside how large it is; wide."""
    states = wide(states)
    length = lambda x: jnp.sqrt(jnp.square(x).sum((2, 3)))
    return divide(length(states[1:] - states[:-1]), length(states[:-1]))


_open = adjusted(lambda gate: gate._replace(outer=Affine(*(0.0 * x for x in gate.outer))))
_still = adjusted(lambda states: states[:1].repeat(len(states), 0))

OPS = (
    Op(
        step_gate,
        papers=(70,),
        reads="all",
        sizes={"3W": 24, "E": 5},
        limits=(Limit("half a step", {"gate": _open}, lambda x, step: x + step / 2),),
    ),
    Op(
        stiffness,
        papers=(70,),
        sizes={"L": 4, "l": 3},
        limits=(
            Limit(
                "states that stay",
                {"states": _still},
                lambda states: jnp.zeros((states.shape[0] - 1, states.shape[1])),
            ),
        ),
    ),
)
