"""docs/flexattention.md: each of its values is what FlexAttention's examples compute."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from attnjax import attend, attention_scores, attention_weights
from tests.helpers import draw, draws

PAGE = (Path(__file__).parents[2] / "docs" / "flexattention.md").read_text()
DOC: dict = {}
exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), DOC)  # the page as it stands

T, N, H = DOC["T"], DOC["heads"], 8
OFFSETS = np.array([0, 5, 6, 17, 24])


def document(i):
    return np.searchsorted(OFFSETS, i, side="right") - 1


def shared(i, j):
    own, prompt = document(i), np.array([0, 0, 0, 3])[document(i)]
    inside = (j >= OFFSETS[prompt]) & (j < OFFSETS[prompt + 1])
    return (j <= i) & (document(j) == own) | (own != prompt) & inside


def diffusion(i, j, length=12, size=4):
    noised_q, noised_k = i < length, j < length
    a, b = i % length // size, j % length // size
    past = (a > b) & noised_q & ~noised_k
    return (a == b) & (noised_q == noised_k) | past | (a >= b) & ~noised_q & ~noised_k


def near(a, b, extent, window):
    """NATTEN on one axis: the center keeps half a window from the edges."""
    half = window // 2
    return np.abs(np.clip(a, half, extent - 1 - half) - b) <= half


def natten(i, j):
    return near(i // 6, j // 6, 6, 3) & near(i % 6, j % 6, 6, 3)


def tiles(i, j, seen=64):
    a, b = i // 4, j // 4
    image = near(a // 4, b // 4, 4, 3) & near(a % 4, b % 4, 4, 3)
    return np.where((i < seen) & (j < seen), image, True)


def ancestor(i, j):
    while i >= 0 and i != j:
        i = DOC["parents"][i]
    return i == j


MASKS = {  # name -> (T, S, formula)
    "causal": (T, T, lambda i, j: j <= i),
    "sliding_window": (T, T, lambda i, j: (i - j <= 5) & (j <= i)),
    "sink_window": (T, T, lambda i, j: ((i - j <= 5) | (j < 4)) & (j <= i)),
    "prefix_lm": (T, T, lambda i, j: (j < 7) | (j <= i)),
    "dilated_window": (T, T, lambda i, j: (abs(i - j) <= 8) & (abs(i - j) % 2 == 0)),
    "documents": (T, T, lambda i, j: (document(i) == document(j)) & (j <= i)),
    "batchified": (T, T, lambda i, j: (i // 8 == j // 8) & (j % 8 <= i % 8)),
    "longformer": (T, T, lambda i, j: (abs(i - j) <= 3) | np.isin(i, (0, 9)) | np.isin(j, (0, 9))),
    "shared_prefix": (T, T, shared),
    "block_diffusion": (T, T, diffusion),
    "natten": (36, 36, natten),
    "sliding_tiles": (64, 64, tiles),
    "with_text": (67, 67, tiles),
    "svg_spatial": (T, T, lambda i, j: (abs(i - j) < 8) | (j < 2) | (i < 2)),
    "svg_temporal": (
        T, T, lambda i, j: (abs((i - 2) % 4 - (j - 2) % 4) < 2) | (j < 2) | (i < 2),
    ),
    "flamingo": (
        12, 9, lambda i, j: (i >= DOC["intervals"][j // 3, 0]) & (i < DOC["intervals"][j // 3, 1]),
    ),
    "tree": (7, 12, np.vectorize(lambda i, j: j < 5 or ancestor(i, j - 5))),
    "draft_training": (
        12, 17, lambda i, j: (j < 5) | (j >= 5) & (i // 4 == (j - 5) // 4) & ((j - 5) % 4 <= i % 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_its_formula(name):
    T, S, formula = MASKS[name]
    want = np.broadcast_to(formula(np.arange(T)[:, None], np.arange(S)[None]), (T, S))
    assert want.any() and not want.all()
    got = np.asarray(DOC[name].dense(T, S))
    np.testing.assert_array_equal(got.reshape(got.shape[-2:]), want)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        (
            "inside",
            lambda i, j: (document(i) == document(j)) & ((j - OFFSETS[document(j)] < 7) | (j <= i)),
        ),
        ("tiled_natten", lambda i, j: natten(DOC["by_tiles"][i], DOC["by_tiles"][j])),
    ],
)
def test_masks_at_positions_are_their_formulas(name, formula):
    T = len(DOC[name]["q_positions"])
    q, k = draws((1, T, 1, H), (1, T, 1, H))
    seen = np.asarray(attention_weights(q, k, **DOC[name]))[0, 0] > 0
    np.testing.assert_array_equal(seen, formula(np.arange(T)[:, None], np.arange(T)[None]))


i, j = np.arange(T)[:, None], np.arange(T)[None]
SLOPES = 2.0 ** (-8 * np.arange(1, N + 1) / N)
SCORES = {  # name -> score (N,T,T) -> the modified one
    "alibi": lambda s: s + np.where(j <= i, j - i, i - j) * SLOPES[:, None, None],
    "soft_cap": lambda s: 30 * np.tanh(s / 30),
    "sandwich": lambda s: (
        s
        + np.cos((i - j)[..., None] / 10000 ** (np.arange(64) / 64)).sum(-1)
        / (8 * np.arange(1, N + 1) / N)[:, None, None]
    ),
    "graphormer": lambda s: s + np.asarray(DOC["learned"])[:, np.minimum(abs(i - j), 5)],
}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_modification_is_its_formula(name):
    q, k = draws((1, T, N, H), (1, T, N, H))
    raw = np.einsum("tnh,snh->nts", *(np.asarray(x[0], np.float64) for x in (q, k))) / H**0.5
    got = attention_scores(q, k, mods=(DOC[name],))[0]
    np.testing.assert_allclose(got, SCORES[name](raw), rtol=2e-5, atol=2e-4)


def test_an_activation_in_the_place_of_softmax():
    q, k, v = draws(*[(1, T, N, H)] * 3)
    s = np.einsum("btnh,bsnh->bnts", q, k) / H**0.5
    want = np.einsum("bnts,bsnh->btnh", jax.nn.gelu(s), v)
    np.testing.assert_allclose(attend(q, k, v, **DOC["gelu"]), want, rtol=1e-4, atol=1e-4)


def test_latent_attention_adds_a_second_product():
    q, q_rope = draw(2, 5, N, H, seed=1), draw(2, 5, N, 4, seed=2)
    k, v, k_rope = draw(2, 5, 1, H, seed=3), draw(2, 5, 1, 6, seed=4), draw(2, 5, 1, 4, seed=5)
    s = np.einsum("btnh,bsh->bnts", q, k[:, :, 0]) / H**0.5
    s = s + 0.3 * np.einsum("btnh,bsh->bnts", q_rope, k_rope[:, :, 0])
    w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    want = np.einsum("bnts,bsd->btnd", w, v[:, :, 0])
    got = DOC["latent"](q, k, v, q_rope, k_rope, 0.3)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
