"""What the studies of decoding ask for, and the attention they exchange."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import lab
from experiments.decode import image_exit, near_heads, trained_keys
from experiments.sparse import _needles as shared


def test_questions_of_images_have_their_answers():
    images = np.zeros((3, 8, 8), np.float32)
    images[:, :2, 2:4] = 1.0  # the second of the first row of patches
    tokens, wanted, asked = image_exit.asked(images, np.array([7, 4, 3]), np.array([0, 1, 2]))
    assert tokens.shape == (3, 18) and (tokens[:, 1] == 16).all() and tokens[:, :16].sum() == 48
    assert tokens[:, 16].tolist() == [17, 18, 19] and (tokens[:, 17] == 20).all()
    assert wanted[:, -1].tolist() == [21 + 7, 21 + 10 + 1, 21 + 10 + 0]
    assert (asked == (np.arange(18) == 17)).all()


def test_behind_the_exit_nothing_of_the_image_is_read():
    c = image_exit.Config(width=8, depth=3, heads=2)
    [task] = image_exit.studied(c).values()
    never: Any = task.arms["never"]
    trained = never(0)
    tokens = jnp.asarray(task.held[0][:2])
    for n in (0, 1):
        arm: Any = task.arms[f"after {n}"]
        model = arm.make(0, trained)
        moved = tokens.at[:, :16].set((tokens[:, :16] + 5) % 17)
        changed = jnp.abs(model(tokens)[0] - model(moved)[0])[:, 16:].max()
        assert (float(changed) > 1e-6) == (n > 0)


def test_adaptive_heads_end_in_full_and_in_near_attention():
    c = near_heads.QUICK
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 24, 2, 8))
    every = near_heads.Adaptive(replace(c, tau=2.0), None)(q, k, v)
    np.testing.assert_allclose(every, shared.full(q, k, v), atol=1e-5)
    shares = near_heads.Adaptive(c, None).share(q, k)
    assert shares.shape == (2, 24, 2) and bool((shares[:, : c.sinks + c.window] == 1).all())
    moments = near_heads.key_moments(k[:1])
    same = near_heads.Adaptive(c, moments).share(q[:1], k[:1])
    np.testing.assert_allclose(same, shares[:1], atol=1e-5)


def test_all_keys_kept_are_full_attention_and_the_second_layer_chooses():
    c = replace(trained_keys.QUICK, keep=24, rank=8, depth=3)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 24, 2, 8))
    full = shared.full(q, k, v)
    ranked = trained_keys.Ranked(c, jnp.broadcast_to(jnp.eye(8), (2, 8, 8)))
    np.testing.assert_allclose(ranked(q, k, v), full, atol=1e-5)
    layers: Any = trained_keys.tidal(c)
    for layer in layers:
        np.testing.assert_allclose(layer(q, k, v), full, atol=1e-5)
    few: Any = trained_keys.tidal(replace(c, keep=4))
    few[1](k, q, v)
    one = few[2](q, k, v)
    few[1](q, k, v)
    assert float(jnp.abs(one - few[2](q, k, v)).max()) > 1e-3


def test_measures_of_trained_keys_have_their_limits():
    c: Any = replace(trained_keys.QUICK, length=16, keep=4, width=16, heads=2, depth=2)
    model = shared.model(c, shared.full)(0)
    text = lab.tasks.Bytes.of(c)
    found = trained_keys.look(c, model, c.needles.held(replace(text, judged=2)))
    assert 0 < float(found["dimensions"]) <= 1 and 0 < float(found["overlap"]) < 1
