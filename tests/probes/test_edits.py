"""Edits of what flows in a model, and what single heads do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, lab, masks
from attnjax.probes import edits
from attnjax.probes.edits import At
from tests.helpers import near

DEPTH, N = 2, 4


def causal(q, k, v):
    return attend(q, k, v, mask=masks.causal)


@pytest.fixture(scope="module")
def model():
    shape = lab.Shape(width=16, depth=DEPTH, heads=N, length=8)
    made = lab.TinyLM(shape, causal, vocab=11, rngs=nnx.Rngs(0))
    return lambda tokens, edit=lambda name, x: x: made(tokens, edit)


TOKENS = (jnp.asarray([[1, 5, 3, 9, 2, 0]]),)
OTHERS = (jnp.asarray([[1, 5, 3, 4, 2, 0]]),)


def last_logit(logits):
    return logits[0, -1, 7]


def test_an_edit_is_made_where_it_says_and_nowhere_else(model):
    point = "1.heads"
    before = edits.captured(model, TOKENS, (point,))[point]
    at = At(point, tokens=slice(2, None), heads=(0, 3))
    for edit, want in (
        (edits.scaled(at, 0.5), 0.5 * before),
        (edits.replaced(at, 2 + 0 * before), 2 + 0 * before),
        (edits.steered(at, jnp.arange(4.0)), before + jnp.arange(4.0)),
    ):
        now = edit(point, before)
        near(now[:, 2:, 0], want[:, 2:, 0])
        near(now[:, 2:, 3], want[:, 2:, 3])
        near(now[:, :2], before[:, :2])
        near(now[:, :, 1:3], before[:, :, 1:3])
        assert edit("0.heads", before) is before
    twice = edits.one_by_one(edits.scaled(at, 2.0), edits.scaled(at, 0.5))
    near(twice(point, before), before)
    out = model(*TOKENS, edit=edits.scaled(At("0.residual", tokens=(4,)), 3.0))[0]
    near(out[:, :4], model(*TOKENS)[0][:, :4])
    assert np.abs(np.asarray(out - model(*TOKENS)[0]))[:, 4:].min(-1).max() > 0


def test_heads_are_those_that_the_projection_joins(model):
    heads = edits.heads_of(model, TOKENS)
    assert heads.shape == (DEPTH, 1, 6, N, 4)
    seen = edits.captured(model, TOKENS, ("0.heads", "0.attention"))
    none = model(*TOKENS, edit=edits.scaled(At("0.heads"), 0.0))[1]["attention"][0]
    near(heads[0], seen["0.heads"])
    near(none, 0 * none)


def test_knocking_out_and_patching_are_runs_with_one_edit_each(model):
    whole, other = (last_logit(model(*x)[0]) for x in (TOKENS, OTHERS))
    out = jax.jit(lambda x: edits.knocked_out(model, x, last_logit))(TOKENS)
    share = jax.jit(lambda x, y: edits.patched(model, x, y, last_logit))(TOKENS, OTHERS)
    clean = edits.heads_of(model, TOKENS)
    for layer, head in np.ndindex(DEPTH, N):
        at = At(f"{layer}.heads", heads=(head,))
        less = last_logit(model(*TOKENS, edit=edits.scaled(at, 0.0))[0])
        near(out[layer, head], less - whole, 1e-4)
        put = last_logit(model(*OTHERS, edit=edits.replaced(at, clean[layer]))[0])
        near(share[layer, head], (put - other) / (whole - other), 1e-3)


def test_all_heads_of_the_only_layer_that_mixes_bring_all():
    """Tokens differ in one place, so that what another place knows of it comes by the heads."""
    shape = lab.Shape(width=16, depth=1, heads=N, length=8)
    made = lab.TinyLM(shape, causal, vocab=11, rngs=nnx.Rngs(0))
    model = lambda tokens, edit=lambda name, x: x: made(tokens, edit)
    clean = edits.heads_of(model, TOKENS)
    edit = edits.replaced(At("0.heads"), clean[0])
    near(model(*OTHERS, edit=edit)[0][:, -1], model(*TOKENS)[0][:, -1], 1e-5)


def test_attribution_is_patching_for_small_changes(model):
    """Where a hidden vector moves a little, both are the same; the sum is over its tokens."""
    step = 1e-2 * jnp.asarray(np.random.default_rng(0).standard_normal(16), jnp.float32)

    def nudged(tokens, nudge, edit=lambda name, x: x):
        moved = edits.steered(At("embedding", tokens=(3,)), nudge * step)
        return model(tokens, edit=edits.one_by_one(moved, edit))

    moved, still = (TOKENS[0], jnp.float32(1.0)), (TOKENS[0], jnp.float32(0.0))
    first = edits.attributed(nudged, moved, still, last_logit)
    assert first.shape == (DEPTH, 1, 6, N)
    near(first.sum((1, 2)), edits.patched(nudged, moved, still, last_logit), 2e-2)
    assert not np.asarray(first[:, :, :3]).any()  # before the change nothing moves


def test_importance_is_the_slope_of_a_head_s_scale(model):
    slope = edits.importance(model, TOKENS, last_logit)
    at, step = At("1.heads", heads=(2,)), 1e-2
    up, down = (last_logit(model(*TOKENS, edit=edits.scaled(at, 1 + s))[0]) for s in (step, -step))
    near(slope[1, 2], abs(up - down) / (2 * step), 2e-2)


def test_bad_places_are_told(model):
    with pytest.raises(ValueError, match="no point 0.head, expected some of embedding, 0.att"):
        edits.captured(model, TOKENS, ("0.head",))
    with pytest.raises(ValueError, match=r"heads are given and 0.mlp has shape \(1, 6, 16\)"):
        model(*TOKENS, edit=edits.scaled(At("0.mlp", heads=(0,)), 0.0))
    with pytest.raises(ValueError, match="layers have heads of shapes set"):
        edits.heads_of(lambda x, edit: (x, {}), TOKENS)
