"""The page of attention maps: what it holds, and what a browser makes of it, where there is one."""

import base64
import json
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest

from attnjax import cli
from attnjax.probes import view

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
L, N, K, T, H = 2, 4, 2, 9, 3
EVIL = '</script><img src=x onerror="document.title=1">&amp;\u2028'
TOKENS = [f"t{i} " for i in range(T - 1)] + [EVIL]
RNG = np.random.default_rng(0)
SCORES = np.where(np.tri(T, dtype=bool), RNG.normal(size=(L, N, T, T)), -np.inf)
WEIGHTS = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
Q, KEYS = RNG.normal(size=(L, T, N, H)), RNG.normal(size=(L, T, K, H))


def data_of(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.html)
    return json.loads(text)


def numbers(text, dtype):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def test_the_page_holds_every_map_and_what_makes_a_score():
    told = data_of(view(WEIGHTS, TOKENS, q=Q, k=KEYS))
    for l, n in np.ndindex(L, N):
        one = told["maps"][l * N + n]
        got = numbers(one["weights"], "<u2").reshape(T, T) / 65535 * one["most"]
        np.testing.assert_allclose(got, WEIGHTS[l, n], atol=1e-5)
    q, k = (numbers(told[x], "<f4").reshape(L, T, -1, H) for x in "qk")
    product = q[1, 5, 3] * k[1, 2, 3 * K // N]
    want = Q[1, 5, 3] @ KEYS[1, 2, 1] / np.sqrt(H)
    np.testing.assert_allclose(product.sum() * told["scale"], want, rtol=1e-5)
    assert told["queries"] == told["keys"] == TOKENS


def test_it_loads_nothing_and_escapes_every_text():
    page = view(WEIGHTS, TOKENS, title=EVIL).html
    assert not re.search(r"https?://|src=[^x]|@import|url\(", page)
    assert page.count("</script>") == 2
    assert "onerror" in page and "<img" not in page
    assert "&lt;/script&gt;" in view(WEIGHTS, title=EVIL)._repr_html_().replace("&amp;", "&")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"weights": WEIGHTS[0, 0]}, r"weights has shape \(9, 9\), expected \(layers,N,T,S\)"),
        ({"weights": -WEIGHTS}, "NaN, infinite or negative"),
        ({"weights": np.zeros((1, 1, 513, 2))}, "513 queries and 2 keys, expected at most 512"),
        ({"tokens": ["a"]}, "tokens has 1 texts, expected 9"),
        ({"q": Q}, "q and k go together"),
        ({"q": Q[:, :, :2], "k": KEYS}, r"q has shape .*, expected \(layers,T,N,H\) = \(2,9,4,H\)"),
        ({"q": Q, "k": KEYS[..., :2]}, r"k has shape .*, expected \(layers,S,K,H\)"),
    ],
)
def test_what_does_not_fit_is_told(given, told):
    with pytest.raises(ValueError, match=told):
        view(**({"weights": WEIGHTS} | given))


def test_the_command_writes_a_page_or_says_why_not(tmp_path, capsys):
    path = tmp_path / "maps.npz"
    np.savez(path, weights=WEIGHTS, tokens=np.array(TOKENS), q=Q, k=KEYS)
    assert cli.main(["view", str(path)]) == 0
    assert data_of(view(WEIGHTS, TOKENS, q=Q, k=KEYS, title="maps")) == json.loads(
        re.findall(r'id="data">(.*?)</script>', (tmp_path / "maps.html").read_text("utf-8"))[0]
    )
    capsys.readouterr()
    np.savez(path, maps=WEIGHTS)
    assert cli.main(["view", str(path)]) == 2
    assert "arrays maps; expected weights" in capsys.readouterr().err
    assert cli.main(["view", str(tmp_path / "none.npz")]) == 2
    assert "is no file" in capsys.readouterr().err


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_a_browser_shows_the_place_that_the_link_names(tmp_path):
    page = view(WEIGHTS, TOKENS, q=Q, k=KEYS).save(tmp_path / "page.html")
    place = "layer=1&head=3&query=8&key=2"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--virtual-time-budget=5000", "--dump-dom", f"{page.as_uri()}#{place}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    dom = done.stdout
    assert 'data-ready="yes"' in dom and "<title>Attention</title>" in dom
    assert f"gives key 2 \u201ct2 \u201d {WEIGHTS[1, 3, 8, 2]:.4f}" in dom
    assert "all its weights sum to 1.0000" in dom
    score = Q[1, 8, 3] @ KEYS[1, 2, 1]
    assert f"q \u00b7 k = {score:.4f}, times 0.5774 is {score * 3**-0.5:.4f}" in dom
    pressed = re.findall(r'aria-label="layer (\d), head (\d)"[^>]*aria-pressed="true"', dom)
    assert pressed == [("1", "3")]
