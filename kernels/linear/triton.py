"""Launches of the kernels of chunked linear attention (`body.py`): plain functions on arrays.

With S_i the state before chunk i, P_i its scores (`scores`), c the sums of log decays from the
start of the chunk to each token and e that to its end,

    u = U - W S_i   (U where W is None)
    o = P_i u + exp(c) q . S_i
    S_{i+1} = exp(e) S_i + (exp(e - c) k)^T u

q (B,T,NQ,H), k (B,T,NK,H), u (B,T,NU,D), w (B,T,N,H) or None and what is like them share a dtype,
in which products are taken, with sums in float32.  Heads divide N; consecutive ones share.  States
(B,N,H,D) and decays are float32: `decays` is (whole, rest), two sums (B,NC*C,N,G) whose sum is c,
the first of integers, G either 1 or H; or None.  NaN and infinities in q, k and u count as zeros.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.kernels.launch import launch

Array = jax.Array
Decays = tuple[Array, Array] | None

_BODY = "linear/body.py"
_BLOCK = 16  # tokens of a chunk between which decays of channels are taken pair by pair


class Sizes(NamedTuple):
    """B sequences of T tokens, N heads, keys of width H and values of width D, chunks of C."""

    B: int
    T: int
    N: int
    H: int
    D: int
    C: int
    interpret: bool = False

    @property
    def NC(self) -> int:
        return -(-self.T // self.C)


class Gradients(NamedTuple):
    """Those of k and u with a head for each of N: whoever repeated them sums."""

    q: Array  # (B,T,N,H)
    k: Array  # (B,T,N,H)
    u: Array  # (B,T,N,D)
    w: Array | None  # (B,T,N,H)
    decays: Array | None  # (B,NC*C,N,G), of c
    start: Array  # (B,N,H,D)


def scores(z: Sizes, q: Array, k: Array, decays: Decays, first: int, dtype: jnp.dtype) -> Array:
    """sum_h q_ih exp(c_ih - c_jh) k_jh where i >= j + first, else 0: (B,N,NC,C,C)."""
    out = {"p": jax.ShapeDtypeStruct((z.B, z.N, z.NC, z.C, z.C), dtype)}
    given = {"q": q, "k": k} | _decays(decays)
    given |= _sizes(z, decays, q=q, k=k) | {"BH": _tile(z.H, _most(k)), "FIRST": first}
    if not _wide(decays):
        return _run(z, "scores", given, out, z.NC)["p"]
    blocks = z.C // _BLOCK
    return _run(z, "channel_scores", given | {"R": _BLOCK}, out, blocks * z.NC)["p"]


def scores_back(
    z: Sizes, q: Array, k: Array, decays: Decays, first: int, dp: Array
) -> tuple[Array, Array, Array | None]:
    """Gradients of q (B,T,N,H), k (B,T,N,H) and c from those of `scores`."""
    if _wide(decays):
        return _channel_scores_back(z, q, k, decays, first, dp, (None, None, None))
    BH, NH = _tiles(z.H, _most(k))
    out = {"dq": _like(z, q, z.H), "dk": _like(z, k, z.H), "dc": _moved(z, decays, NH)}
    given = {"q": q, "k": k} | _decays(decays) | {"dp": dp}
    given |= _sizes(z, decays, q=q, k=k) | {"BH": BH, "NH": NH, "FIRST": first}
    got = _run(z, "scores_back", given, out, NH * z.NC, warps=8)
    return got["dq"], got["dk"], _total(got["dc"])


def _channel_scores_back(
    z: Sizes, q: Array, k: Array, decays: Decays, first: int, dp: Array,
    more: tuple[Array | None, Array | None, Array | None],
) -> tuple[Array, Array, Array]:  # fmt: skip
    """`scores_back`; adds another part of the gradients of q and k, and those of chunks' ends."""
    BH, NH = _tiles(z.H, _most(k))
    blocks = z.C // _BLOCK
    out = {"dq": _like(z, q, z.H), "dk": _like(z, k, z.H), "dc": _moved(z, decays, z.H)}
    given = {"q": q, "k": k} | _decays(decays) | {"dp": dp}
    given |= dict(zip(("dq0", "dk0", "dend"), more, strict=True))
    given |= _sizes(z, decays, q=q, k=k) | {"BH": BH, "NH": NH, "R": _BLOCK, "FIRST": first}
    got = _run(z, "channel_scores_back", given, out, NH * blocks * z.NC)
    return got["dq"], got["dk"], got["dc"]


def inverse(z: Sizes, lower: Array) -> Array:
    """(I + L)^-1 for strictly lower triangular L (B,N,NC,C,C) in float32."""
    out = {"out": jax.ShapeDtypeStruct(lower.shape, lower.dtype)}
    return _run(z, "inverse", {"lower": lower, "C": z.C}, out, z.NC)["out"]


def states(
    z: Sizes, k: Array, u: Array, w: Array | None, decays: Decays, start: Array
) -> tuple[Array, Array, Array]:
    """The states before each chunk (B,N,NC,H,D), the last one, and u as it is written.

    The former only meet products, and have the dtype of these.
    """
    out = {
        "before": jax.ShapeDtypeStruct((z.B, z.N, z.NC, z.H, z.D), k.dtype),
        "last": _float32(z.B, z.N, z.H, z.D),
        "new": None if w is None else jax.ShapeDtypeStruct(u.shape, u.dtype),
    }
    given = {"k": k, "u": u, "w": w} | _decays(decays) | {"start": start}
    tiles, count, how = _walk(z, decays, k, w)
    got = _run(z, "states", given | _sizes(z, decays, k=k, u=u) | tiles, out, count, **how)
    return got["before"], got["last"], u if w is None else got["new"]


def outputs(
    z: Sizes, q: Array, k: Array, u: Array, decays: Decays, before: Array, bad: Array,
    dtype: jnp.dtype,
) -> Array:  # fmt: skip
    """o (B,T,N,D) + bad (B,T,N,1)."""
    p = scores(z, q, k, decays, 0, q.dtype) if _wide(decays) else None
    out = {"out": jax.ShapeDtypeStruct((z.B, z.T, z.N, z.D), dtype)}
    given = {"q": q, "k": k, "p": p, "u": u, "bad": bad} | _decays(decays) | {"before": before}
    tiles, count = _across(z, decays, k)
    return _run(z, "outputs", given | _sizes(z, decays, q=q, k=k, u=u) | tiles, out, count)["out"]


def back(
    z: Sizes, q: Array, k: Array, u: Array, w: Array | None, decays: Decays, start: Array,
    do: Array, dlast: Array,
) -> Gradients:  # fmt: skip
    """Gradients of everything from those of o and of the last state; states are computed again."""
    wide = _wide(decays)
    before, _, u = states(z, k, u, w, decays, start)
    p = scores(z, q, k, decays, 0, q.dtype) if wide or w is not None else None

    out = {
        "after": jax.ShapeDtypeStruct(before.shape, before.dtype),
        "dstart": _float32(z.B, z.N, z.H, z.D),
        "du": None if w is None else _like(z, u, z.D),
    }
    given = {"q": q, "k": k, "w": w, "p": p, "do": do} | _decays(decays) | {"dlast": dlast}
    tiles, count, how = _walk(z, decays, k, w)
    given |= _sizes(z, decays, q=q, k=k) | tiles
    walked = _run(z, "states_back", given, out, count, **how)
    after, du = walked["after"], walked["du"]
    if w is None:
        given = {"q": q, "k": k, "p": p, "do": do} | _decays(decays) | {"after": after}
        tiles, count = _across(z, decays, k)
        given |= _sizes(z, decays, q=q, k=k) | tiles
        du = _run(z, "values_back", given, {"du": _like(z, u, z.D)}, count)["du"]

    BH, NH = _tiles(z.H, _most(k) if w is None else 32)
    out = {
        "dq": _float32(z.B, z.T, z.N, z.H) if wide else _like(z, q, z.H),
        "dk": _float32(z.B, z.T, z.N, z.H) if wide else _like(z, k, z.H),
        "dp": jax.ShapeDtypeStruct((z.B, z.N, z.NC, z.C, z.C), q.dtype) if wide else None,
        "dw": None if w is None else jax.ShapeDtypeStruct(w.shape, w.dtype),
        "dend": _float32(z.B, z.N, z.NC, z.H) if wide else None,
        "dc": None if wide else _moved(z, decays, NH),
    }
    given = {"q": q, "k": k, "u": u, "du": du, "do": do} | _decays(decays)
    given |= {"before": before, "after": after} | _sizes(z, decays, q=q, k=k, u=u) | {"D": z.D}
    given |= {"BH": BH, "NH": NH, "BD": _tile(z.D, 32), "BG": BH if wide else 1}
    got = _run(z, "chunk_back", given, out, NH * z.NC, warps=8 if w is None else 4)
    dq, dk, dc = got["dq"], got["dk"], _total(got["dc"])
    if wide:
        dq, dk, dc = _channel_scores_back(z, q, k, decays, 0, got["dp"], (dq, dk, got["dend"]))
    return Gradients(dq, dk, du, got["dw"], dc, walked["dstart"])


# ------------------------------------------------------------------------------------- launches


def _run(
    z: Sizes, function: str, given: dict, out: dict, programs: int, warps: int = 4, stages: int = 2
) -> dict:
    """The outputs of a kernel, None where one of them is None."""
    absent = {name: x for name, x in out.items() if x is None}
    wanted = {name: x for name, x in out.items() if x is not None}
    if "k" in given and given["k"].dtype == np.float32:
        warps = 8
    return absent | launch(
        _BODY, function, "", given | absent, wanted, grid=(programs * z.B * z.N,),
        warps=warps, stages=stages, interpret=z.interpret,
    )  # fmt: skip


def _tile(width: int, most: int) -> int:
    """The width of a tile: a power of two, as Triton wants it, and of tensor cores at least 16."""
    return min(most, max(16, 1 << (width - 1).bit_length()))


def _most(k: Array) -> int:
    """The widest tile: float32 products, without tensor cores, hold their operands in registers."""
    return 32 if k.dtype == np.float32 else 64


def _tiles(width: int, most: int) -> tuple[int, int]:
    """The width of tiles, and their number."""
    return (tile := _tile(width, most)), -(-width // tile)


def _wide(decays: Decays) -> bool:
    return decays is not None and decays[0].shape[-1] > 1


def _decays(decays: Decays) -> dict:
    return dict(zip(("whole", "rest"), decays or (None, None), strict=True))


def _sizes(z: Sizes, decays: Decays, **heads: Array) -> dict[str, int]:
    """The sizes that kernels take, with the heads of q, k and u where they read these."""
    counts = {f"N{name.upper()}": x.shape[2] for name, x in heads.items()}
    G = 0 if decays is None else decays[0].shape[-1]
    return {"T": z.T, "N": z.N, "H": z.H, "G": G, "NC": z.NC, "C": z.C} | counts


def _walk(
    z: Sizes, decays: Decays, k: Array, w: Array | None
) -> tuple[dict[str, int], int, dict[str, int]]:
    """Tiles of states that walk over the chunks, their number, and warps and stages.

    W needs all keys at once; where these are wide, two chunks do not fit in shared memory.
    """
    (BH, NH), (BD, ND) = _tiles(z.H, 64 if w is None else 256), _tiles(z.D, 32)
    BG = BH if _wide(decays) else 1
    tiles = {"D": z.D, "BH": BH, "NH": NH, "BD": BD, "ND": ND, "BG": BG}
    stages = 1 if BH * k.dtype.itemsize >= 512 else 2
    return tiles, NH * ND, {"warps": 4 if BH <= 64 else 8, "stages": stages}


def _across(z: Sizes, decays: Decays, k: Array) -> tuple[dict[str, int], int]:
    """Tiles of values of each chunk."""
    BH, (BD, ND) = _tile(z.H, _most(k)), _tiles(z.D, _most(k))
    BG = BH if _wide(decays) else 1
    return {"D": z.D, "BH": BH, "BD": BD, "ND": ND, "BG": BG}, ND * z.NC


def _moved(z: Sizes, decays: Decays, width: int) -> jax.ShapeDtypeStruct | None:
    return None if decays is None else _float32(z.B, z.NC * z.C, z.N, width)


def _total(dc: Array | None) -> Array | None:
    """Parts of the gradients of c, one from each tile of keys, as their sum."""
    return None if dc is None else jnp.sum(dc, axis=-1, keepdims=True)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def _like(z: Sizes, x: Array, width: int) -> jax.ShapeDtypeStruct:
    """The gradient of x, with N heads: in float32 where those of several heads are summed."""
    dtype = x.dtype if x.shape[2] == z.N else np.float32
    return jax.ShapeDtypeStruct((z.B, z.T, z.N, width), dtype)
