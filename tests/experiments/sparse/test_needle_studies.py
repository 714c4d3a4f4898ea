"""The settings of the studies on needles, and the models that they put together."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import lab
from attnjax.lab import Arm, Task, tasks
from attnjax.nn import SeerGate
from experiments.sparse import _needles as shared
from experiments.sparse import delta, landmark, moba, seer


def made(task: Task, name: str, seed: int, *source: Any) -> Any:
    arm = task.arms[name]
    return (arm.make if isinstance(arm, Arm) else arm)(seed, *source)


TINY = replace(seer.QUICK, length=32, block=4, top_k=3, width=8, heads=2, depth=2)


def test_bad_settings_are_told():
    few = tasks.Needles(needles=5, keys=4, values=4)
    for wrong, told in (
        ({"needles": few}, "needles: got 5, expected at most keys 4"),
        ({"needles": tasks.Needles(needles=20)}, "length: got 64, expected 4 times the needles"),
        ({"top_k": 2}, "from 3 blocks to all"),
        ({"block": 7}, "expected a divisor of length"),
        ({"steps": 0}, "steps: got 0, expected more than 0"),
    ):
        with pytest.raises(lab.UserError, match=told):
            replace(moba.QUICK, **wrong)
    with pytest.raises(lab.UserError, match="longest: got 1, expected at least 2"):
        replace(landmark.QUICK, longest=1)
    with pytest.raises(lab.UserError, match="length: got 32, expected more than 8 times"):
        replace(delta.QUICK, length=32)


def test_the_window_has_the_first_block_and_the_latest():
    chosen = seer.latest(TINY, jnp.zeros((1, 24, 2, 4)))
    for i, (row, ok) in enumerate(zip(chosen.indices[0, :, 0], chosen.valid[0, :, 0], strict=True)):
        own = i // 4
        assert set(np.asarray(row)[np.asarray(ok)].tolist()) == {0, max(own - 1, 0), own}


@pytest.mark.slow
def test_only_gates_are_trained_and_the_rest_is_the_trained_models():
    trained = shared.model(TINY, shared.full)(3)
    pair = made(seer.studied(TINY)["blocks"], "seer", 0, trained)
    params = nnx.state(pair, nnx.Param)
    assert len(jax.tree.leaves(params)) == 2 * TINY.depth
    gate = pair.cut.stack.blocks[0].attention.attend
    assert isinstance(gate, SeerGate)
    tokens = jnp.arange(33)[None] % 7
    np.testing.assert_array_equal(pair.full(tokens)[0], trained(tokens)[0])
    # All blocks chosen is full attention, with whatever gates.
    every = replace(TINY, top_k=TINY.length // TINY.block)
    whole = made(seer.studied(every)["blocks"], "pooled keys", 0, trained)
    np.testing.assert_allclose(whole.cut(tokens[:, :32])[0], trained(tokens[:, :32])[0], atol=1e-5)
    assert nnx.state(trained, nnx.Param), "the model it comes from stays as it was"


def test_the_oracle_recalls_most():
    studied = seer.studied(TINY)
    trained = shared.model(TINY, shared.full)(1)
    batch = studied["blocks"].judged()[""]
    rows = {
        name: arm.make(0, trained).scores(batch) for name, arm in studied["blocks"].arms.items()
    }
    assert "distillation" in rows["seer"] and "distillation" not in rows["oracle"]
    recall = {name: float(row["recall"]) for name, row in rows.items()}
    assert all(recall["oracle"] >= each > 0 for each in recall.values())


def test_a_model_with_landmarks_answers_for_every_token_and_no_landmark():
    c = replace(landmark.QUICK, length=32, block=4, top_k=3, width=8, heads=2, depth=1)
    [task] = landmark.studied(c).values()
    trained = made(task, "landmark, all blocks", 0)
    tokens = jnp.arange(32)[None]
    logits, _ = trained(tokens)
    assert logits.shape == (1, 32, c.needles.vocabulary + 1)
    alone = made(task, "landmark, own block", 0, trained)
    changed = tokens.at[0, 0].set(99)
    other = alone(changed)[0]
    np.testing.assert_array_equal(other[:, 3:], alone(tokens)[0][:, 3:])  # blocks of 3 tokens
    assert (other[:, :3] != alone(tokens)[0][:, :3]).any()


@pytest.mark.slow
def test_the_cosine_is_one_where_nothing_is_sparse_and_less_where_it_is():
    few = tasks.Needles(needles=2)
    c = replace(delta.QUICK, length=32, width=8, heads=2, window=4, needles=few)
    trained = shared.model(c, shared.full)(0)
    [task] = delta.studied(c).values()
    batch = task.judged()[""]
    found = {"full": task.score(trained, batch)}
    for name in ("window", "delta"):
        found[name] = task.score(made(task, name, 0, trained), batch)
    assert found["full"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert float(found["window"]["cosine"]) < 0.999
    whole = replace(c, window=32)
    same = made(delta.studied(whole)["needles"], "delta", 0, trained)
    assert task.score(same, batch)["next"] == pytest.approx(float(found["full"]["next"]), abs=1e-5)
