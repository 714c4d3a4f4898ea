"""Attention maps as a page: all heads at once, one head token by token, the neurons of a score.

    view(weights, tokens, q=q, k=k).save("attention.html")

The page is one file that loads nothing; it opens from disk and in notebooks.  Vig, "A Multiscale
Visualization of Attention in the Transformer Model", 2019, arXiv:1906.05714.
"""

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAPERS = (250,)
MOST_TOKENS = 512
_SMALL = 48  # cells along a side of a thumbnail, at most


@dataclass(frozen=True)
class Page:
    """A page; notebooks show it, `save` writes it."""

    html: str

    def save(self, path: str | Path) -> Path:
        """Writes the page, and gives its path."""
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        """An iframe, so that neither page sees the other's styles."""
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="800" style="border:0"></iframe>'


def view(
    weights: Any,
    tokens: Sequence[str] | None = None,
    *,
    key_tokens: Sequence[str] | None = None,
    q: Any = None,
    k: Any = None,
    scale: float | None = None,
    title: str = "Attention",
) -> Page:
    """The maps (layers,N,T,S), or (N,T,S) of one layer, as a page.

    tokens      T texts, numbers if None; key_tokens S, those of the queries if None
    q, k        (layers,T,N,H) and (layers,S,K,H), before the scale, for the view of neurons
    scale       of the scores, 1/sqrt(H) if None

    Weights are kept in steps of 1/65535 of the largest one of a map; the sum over a query's keys is
    told, never brought to one.  Raises ValueError for shapes that do not fit, for NaN, for negative
    weights and for more than 512 tokens.
    """
    weights = _maps(weights)
    L, N, T, S = weights.shape
    told = {
        "title": str(title),
        "layers": L,
        "heads": N,
        "queries": _texts("tokens", tokens, T),
        "keys": _texts("key_tokens", tokens if key_tokens is None and S == T else key_tokens, S),
        "small": [min(T, _SMALL), min(S, _SMALL)],
        "maps": [_packed(x) for layer in weights for x in layer],
        "width": 0,
    }
    if (q is None) != (k is None):
        raise ValueError("view: q and k go together, expected both or none")
    if q is not None:
        told |= _neurons(np.asarray(q, np.float32), np.asarray(k, np.float32), scale, weights.shape)
    template = Path(__file__).with_name("view.html").read_text(encoding="utf-8")
    data = json.dumps(told, ensure_ascii=False)
    # What could end the element, or begin another, is spelled so that it cannot.
    for mark in "<>&\u2028\u2029":
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    title_text = html.escape(str(title))
    page = template.replace("<title>Attention</title>", f"<title>{title_text}</title>")
    return Page(page.replace("/*DATA*/", data))


def view_file(path: str | Path) -> Page:
    """The page of an .npz file with `weights`, and what else `view` takes by its names."""
    known = ("weights", "tokens", "key_tokens", "q", "k", "scale", "title")
    with np.load(path, allow_pickle=False) as file:
        given: Mapping[str, np.ndarray] = {name: file[name] for name in file.files}
    if "weights" not in given or set(given) - set(known):
        names = ", ".join(sorted(given)) or "none"
        raise ValueError(f"{path}: arrays {names}; expected weights, and any of {known[1:]}")
    plain: dict[str, Any] = {"title": Path(path).stem}
    for name, x in given.items():
        if name in ("tokens", "key_tokens"):
            plain[name] = [str(each) for each in x.tolist()]
        else:
            plain[name] = x.item() if name in ("scale", "title") else x
    return view(**plain)


def _maps(weights: Any) -> np.ndarray:
    x = np.asarray(weights, np.float32)
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"view: weights has shape {x.shape}, expected (layers,N,T,S) or (N,T,S)")
    if max(x.shape[2:]) > MOST_TOKENS:
        raise ValueError(
            f"view: weights has {x.shape[2]} queries and {x.shape[3]} keys, expected at most "
            f"{MOST_TOKENS}: give a part"
        )
    if not np.isfinite(x).all() or x.min() < 0:
        raise ValueError("view: weights has NaN, infinite or negative ones")
    return x


def _texts(name: str, tokens: Sequence[str] | None, count: int) -> list[str]:
    if tokens is None:
        return [f"{i} " for i in range(count)]
    if len(tokens) != count:
        raise ValueError(f"view: {name} has {len(tokens)} texts, expected {count}")
    return [str(token) for token in tokens]


def _deflated(x: np.ndarray) -> str:
    little = x.astype(x.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()


def _packed(x: np.ndarray) -> dict[str, Any]:
    """A map (T,S) in steps of its largest weight, and its thumbnail."""
    most = float(x.max()) or 1.0
    steps = np.rint(x / most * 65535).astype(np.uint16)
    small = np.sqrt(_pooled(_pooled(x / most, 0), 1))
    text = base64.b64encode(np.rint(255 * small).astype(np.uint8).tobytes()).decode()
    return {"weights": _deflated(steps), "most": most, "small": text}


def _pooled(x: np.ndarray, axis: int) -> np.ndarray:
    """The largest of neighbors, so many that few are left."""
    count = min(x.shape[axis], _SMALL)
    starts = np.arange(count) * x.shape[axis] // count
    return np.maximum.reduceat(x, starts, axis=axis)


def _neurons(
    q: np.ndarray, k: np.ndarray, scale: float | None, shape: tuple[int, ...]
) -> dict[str, Any]:
    L, N, T, S = shape
    if q.ndim != 4 or q.shape[:3] != (L, T, N):
        raise ValueError(f"view: q has shape {q.shape}, expected (layers,T,N,H) = ({L},{T},{N},H)")
    H = q.shape[3]
    if k.ndim != 4 or k.shape[:2] != (L, S) or k.shape[3] != H or N % k.shape[2]:
        raise ValueError(f"view: k has shape {k.shape}, expected (layers,S,K,H) = ({L},{S},K,{H})")
    return {
        "q": _deflated(q),
        "k": _deflated(k),
        "width": H,
        "key_heads": k.shape[2],
        "scale": H**-0.5 if scale is None else float(scale),
    }
