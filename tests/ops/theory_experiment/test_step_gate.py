"""The gate of a step: its oracles, squeeze-and-excitation, a stiff flow."""

import jax.numpy as jnp
import numpy as np

from attnjax.core.numerics import Affine
from attnjax.ops.theory_experiment import step_gate, stiffness
from attnjax.ops.theory_experiment.step_gate import StepGate
from tests.helpers import draws, near, run
from tests.ops.plain import sigmoid

B, T, W, E = 2, 6, 4, 3


def step_gate_oracle(x, step, gate):
    (w1, b1), (w2, b2) = gate
    out = np.zeros(x.shape)
    for b in range(len(x)):
        here, there = x[b].mean(0), step[b].mean(0)
        inner = np.maximum(np.concatenate([here, there, there - here]) @ w1 + b1, 0)
        out[b] = x[b] + sigmoid(inner @ w2 + b2) * step[b]
    return out


def stiffness_oracle(states):
    norm = np.linalg.norm
    pairs = list(zip(states, states[1:], strict=False))
    return np.array([[norm(b - a) / norm(a) for a, b in zip(x, y, strict=True)] for x, y in pairs])


def test_without_the_state_it_is_squeeze_and_excitation():
    x, step, w1, b1, w2, b2 = draws((B, T, W), (B, T, W), (3 * W, E), (E,), (E, W), (W,))
    w1 = w1.at[:W].set(0.0).at[2 * W :].set(0.0)
    got = run(step_gate, x, step, StepGate(Affine(w1, b1), Affine(w2, b2)))
    hidden = np.maximum(np.asarray(step).mean(1) @ w1[W : 2 * W] + b1, 0)
    near(got, x + sigmoid(hidden @ w2 + b2)[:, None] * step)


def test_a_linear_flow_is_stiff_where_its_eigenvalue_is_large():
    rates = [0.1, 0.1, 5.0, 0.1]
    states = [np.ones((1, 2, 3))]
    for rate in rates:
        states.append(states[-1] * (1 + rate))
    near(stiffness(jnp.asarray(np.stack(states)))[:, 0], rates)
