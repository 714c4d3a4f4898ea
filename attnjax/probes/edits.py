"""What single heads do: edits of what flows in a model as data, and the runs that compare them.

    model(tokens, edit=scaled(At("3.heads", heads=(0, 2)), 0.0))       two heads knocked out

A model is a function of its inputs that takes `edit(name, x) -> x` and gives (output, seen), as
`lab.TinyLM` does.  Scores are functions of its output to one number.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Edit = Callable[[str, jax.Array], jax.Array]
Model = Callable[..., tuple[Any, Any]]
Score = Callable[[Any], jax.Array]
Inputs = tuple[Any, ...]  # of the model


class At(NamedTuple):
    """A place: a point's name, and which of its tokens and heads; None: all.

    heads  of points (B,T,N,H) alone
    """

    point: str
    tokens: Sequence[int] | slice | None = None
    heads: Sequence[int] | None = None

    def chosen(self, x: jax.Array) -> np.ndarray:
        """Which numbers of x (B,T,...) are meant, broadcastable to it.

        Raises ValueError for heads of a point that has none.
        """
        if self.heads is not None and x.ndim != 4:
            told = f"{self.point} has shape {x.shape}"
            raise ValueError(f"At: heads are given and {told}, expected (B,T,N,H)")
        some = np.ones((1, *x.shape[1:-1], 1), bool)
        for axis, which in ((1, self.tokens), (2, self.heads)):
            if which is not None:
                kept = np.zeros(x.shape[axis], bool)
                kept[which if isinstance(which, slice) else list(which)] = True
                shape = [1] * x.ndim
                shape[axis] = -1
                some = some & kept.reshape(shape)
        return some


def replaced(at: At, value: jax.Array) -> Edit:
    """The edit that puts values there, such as those of another run (`captured`)."""
    return lambda name, x: jnp.where(at.chosen(x), value, x) if name == at.point else x


def scaled(at: At, by: float | jax.Array) -> Edit:
    """The edit that multiplies what is there; by 0 it is knocked out."""
    return lambda name, x: jnp.where(at.chosen(x), by * x, x) if name == at.point else x


def steered(at: At, vector: jax.Array) -> Edit:
    """The edit that adds a vector (width,), or a (B,T,...) of them, to what is there."""
    return lambda name, x: jnp.where(at.chosen(x), x + vector, x) if name == at.point else x


def one_by_one(*edits: Edit) -> Edit:
    """All of the edits, each of what those before leave."""

    def edit(name: str, x: jax.Array) -> jax.Array:
        for each in edits:
            x = each(name, x)
        return x

    return edit


def captured(model: Model, inputs: Inputs, points: Sequence[str]) -> dict[str, jax.Array]:
    """What flows at these points, by name.

    Raises ValueError for a point that the model has not.
    """
    seen: dict[str, jax.Array] = {}
    names: list[str] = []

    def edit(name: str, x: jax.Array) -> jax.Array:
        names.append(name)
        if name in points:
            seen[name] = x
        return x

    model(*inputs, edit=edit)
    if missing := [name for name in points if name not in seen]:
        there = ", ".join(dict.fromkeys(names))
        raise ValueError(f"captured: no point {', '.join(missing)}, expected some of {there}")
    return seen


def heads_of(model: Model, inputs: Inputs) -> jax.Array:
    """What each head gives, before the projection that joins them: (depth,B,T,N,H).

    Raises ValueError where no layer, or not each, has heads of one shape.
    """
    seen: dict[str, jax.Array] = {}

    def edit(name: str, x: jax.Array) -> jax.Array:
        if name.endswith(".heads"):
            seen[name] = x
        return x

    model(*inputs, edit=edit)
    if len(shapes := {x.shape for x in seen.values()}) != 1:
        raise ValueError(f"heads_of: layers have heads of shapes {shapes}, expected one for all")
    return jnp.stack([seen[f"{layer}.heads"] for layer in range(len(seen))])


def _with_heads(model: Model, inputs: Inputs, change: Callable[[int, jax.Array], jax.Array]) -> Any:
    """The output where change(layer, heads (B,T,N,H)) takes the heads' place."""

    def edit(name: str, x: jax.Array) -> jax.Array:
        return change(int(name.split(".")[0]), x) if name.endswith(".heads") else x

    return model(*inputs, edit=edit)[0]


def _each_head(shape: tuple[int, ...], of: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """of(which (depth,N), one of them true) for each head: (depth,N)."""
    depth, N = shape[0], shape[3]
    one = jnp.eye(depth * N, dtype=bool).reshape(depth * N, depth, N)
    return lax.map(of, one).reshape(depth, N)


def knocked_out(model: Model, inputs: Inputs, score: Score) -> jax.Array:
    """(depth,N): the score with each head's output zero, less that of the model as it is.

    One compilation, depth N + 1 runs.
    """
    shape = jax.eval_shape(lambda: heads_of(model, inputs)).shape

    def without(which: jax.Array) -> jax.Array:
        dropped = lambda layer, x: jnp.where(which[layer][:, None], 0.0, x)
        return score(_with_heads(model, inputs, dropped))

    return _each_head(shape, without) - score(model(*inputs)[0])


def patched(model: Model, inputs: Inputs, others: Inputs, score: Score) -> jax.Array:
    """(depth,N): how much of the score of `inputs` each head brings to the run of `others`.

        (score(others with the head's output from inputs) - score(others))
            / (score(inputs) - score(others))

    1: the head alone does it; 0: it does nothing.  One compilation, depth N + 2 runs.

    Paper: Meng, Bau, Andonian and Belinkov, "Locating and Editing Factual Associations in GPT",
    2022, arXiv:2202.05262 (causal tracing); Wang et al. 2022, arXiv:2211.00593, of single heads.
    """
    clean = heads_of(model, inputs)

    def with_one(which: jax.Array) -> jax.Array:
        put = lambda layer, x: jnp.where(which[layer][:, None], clean[layer], x)
        return score(_with_heads(model, others, put))

    low, high = score(model(*others)[0]), score(model(*inputs)[0])
    return (_each_head(clean.shape, with_one) - low) / (high - low)


def attributed(model: Model, inputs: Inputs, others: Inputs, score: Score) -> jax.Array:
    """(depth,B,T,N): `patched` to first order, of each token apart: two runs and one gradient.

        gradient of score(others) by a head's output . (its output for inputs - for others)
            / (score(inputs) - score(others))

    Paper: Nanda, "Attribution Patching: Activation Patching At Industrial Scale", 2023; Syed, Rager
    and Conmy 2023, arXiv:2310.10348.
    """
    clean, own = heads_of(model, inputs), heads_of(model, others)

    def moved(step: jax.Array) -> jax.Array:
        return score(_with_heads(model, others, lambda layer, x: x + step[layer]))

    low, slope = jax.value_and_grad(moved)(jnp.zeros_like(own))
    high = score(model(*inputs)[0])
    return jnp.sum(slope * (clean - own), axis=-1) / (high - low)


def importance(model: Model, inputs: Inputs, score: Score) -> jax.Array:
    """(depth,N): |d score / d xi| where xi, 1, multiplies each head's output.

    Paper: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", 2019,
    arXiv:1905.10650, which averages this over examples.
    """
    shape = jax.eval_shape(lambda: heads_of(model, inputs)).shape

    def of(xi: jax.Array) -> jax.Array:
        return score(_with_heads(model, inputs, lambda layer, x: xi[layer][:, None] * x))

    return jnp.abs(jax.grad(of)(jnp.ones((shape[0], shape[3]))))
