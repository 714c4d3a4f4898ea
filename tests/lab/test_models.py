"""Small models: what they calculate, show, and can learn."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import lab
from attnjax.lab.models import patches
from attnjax.nn import HeadGate

ROOT = Path(__file__).parents[2]


def causal(q, k, v):
    """Softmax attention, written out, so that the lab's tests need no engine."""
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / q.shape[-1] ** 0.5
    future = jnp.triu(jnp.ones(scores.shape[-2:], bool), 1)[None, None]
    return jnp.einsum("BNTS,BSND->BTND", jax.nn.softmax(jnp.where(future, -1e9, scores)), v)


def tiny(op=causal, positions="learned", **more):
    shape = lab.Shape(width=16, depth=2, heads=2, length=9, positions=positions)
    return lab.TinyLM(shape, op, rngs=nnx.Rngs(0), **more)


def test_the_intermediates_are_what_the_model_calculated():
    model = tiny(gate=HeadGate)
    tokens = jnp.arange(18).reshape(2, 9)
    logits, seen = model(tokens)
    assert seen["q"].shape == (2, 2, 9, 2, 8) and seen["residual"].shape == (3, 2, 9, 16)
    writes = seen["attention"] + seen["mlp"]
    np.testing.assert_allclose(seen["residual"][1:], seen["residual"][:-1] + writes, atol=1e-5)
    for i, block in enumerate(model.stack.blocks):
        normed = block.before_attention(seen["residual"][i])
        heads = causal(seen["q"][i], seen["k"][i], seen["v"][i])
        gated = heads * block.attention.gate(normed)[..., None]
        np.testing.assert_allclose(seen["attention"][i], block.attention.o(gated), atol=1e-5)
    want = model.head(model.stack.norm(seen["residual"][-1]))
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_causality_is_the_callables_alone():
    tokens = jnp.arange(9)[None]
    changed = tokens.at[0, 5].set(200)
    moved = lambda m: np.abs(np.asarray(m(changed)[0] - m(tokens)[0])).max((0, 2)) > 0
    np.testing.assert_array_equal(moved(tiny()), np.arange(9) >= 5)
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)
    assert moved(tiny(full)).all()


def test_without_positions_full_attention_cannot_tell_order():
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)
    tokens = jnp.arange(9)[None]
    for positions, same in (("none", True), ("learned", False)):
        model = tiny(full, positions)
        turned = model(tokens[:, ::-1])[0][:, ::-1]
        assert np.allclose(model(tokens)[0], turned, atol=1e-5) == same


def test_an_edit_replaces_what_flows():
    model = tiny()
    tokens = jnp.arange(9)[None]
    names = []
    model(tokens, lambda name, x: (names.append(name), x)[1])
    first = ["attention_input", "heads", "attention", "residual"]
    inside = [*first, "mlp_input", "mlp_hidden", "mlp"]
    assert names == [
        "embedding", *(f"{i}.{n}" for i in range(2) for n in (*inside, "residual")), "output"
    ]  # fmt: skip
    silent = lambda name, x: x * 0 if name.endswith(("attention", "mlp")) else x
    _, seen = model(tokens, silent)
    np.testing.assert_array_equal(seen["residual"][-1], seen["residual"][0])


def test_vit_sees_patches_in_order_and_learns_digits():
    image = jnp.arange(16).reshape(1, 4, 4)
    np.testing.assert_array_equal(patches(image, 2)[0, 1], [2, 3, 6, 7])
    images = lab.digits()
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)
    shape = lab.Shape(width=16, depth=1, heads=2, length=16)
    graph, params = nnx.split(lab.TinyViT(shape, full, rngs=nnx.Rngs(0)))

    def loss(params, batch):
        return lab.cross_entropy(nnx.merge(graph, params)(batch[0])[0], batch[1]).mean()

    def batches(step):
        chosen = np.random.default_rng((0, step)).integers(0, len(images.train), 64)
        return images.train[chosen], images.train_labels[chosen]

    run = lab.train(params, loss, batches, lab.Optimizer(150, 1e-2))
    logits = jax.jit(lambda p, x: nnx.merge(graph, p)(x)[0])(run.params, images.test)
    assert (np.asarray(logits).argmax(-1) == images.test_labels).mean() > 0.8


def test_cross_entropy_is_in_nats():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5))
    labels = np.array([[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]])
    want = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )
    got = lab.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_positions_travel_with_tokens():
    full = lambda q, k, v: jax.nn.dot_product_attention(q, k, v)  # knows nothing of the order
    shape = lab.Shape(width=8, depth=2, heads=2, length=12)
    model = lab.TinyLM(shape, full, rngs=nnx.Rngs(0))
    tokens = jnp.arange(9)[None] * 3
    order = np.random.default_rng(0).permutation(9).astype(np.int32)
    want, _ = model(tokens)
    got, _ = model(tokens[:, order], positions=jnp.asarray(order))
    np.testing.assert_allclose(got, want[:, order], atol=1e-5)
    assert abs(model(tokens[:, order])[0] - want[:, order]).max() > 1e-2
    run = lambda *at: model(tokens[:, :2], positions=jnp.array(at))[0]
    assert np.isfinite(run(10, 11)).all() and np.isnan(run(10, 12)).any()  # none is made up
