"""What attention over P devices costs each of them: bytes sent, bytes held, steps, FLOPs.

With t = T/P, s = S/P, h hops around a ring, Kx = lcm(K, P), k = B s (H + D) for one key/value head:

                 forward, bytes sent                         backward, bytes sent
    ring         h K k b                                     h K k b + (h + 1) K k b'
    all-gather   (P - 1) K k b                               (P - 1) K k b'
    ulysses      (P-1)/P (B t N (H + D) + Kx k) b            (P-1)/P (B t N (D b + H b') + Kx k b')
    usp          ulysses over U devices, then the ring over R = P/U with Kx/U heads
    lasp2        (P - 1) r B N (H D + A) b'                  (P - 1) r B N H D b'
    lasp         B N H D b'                                  B N H D b'

b and b' are the bytes of an element and of what is summed (gradients and states); r runs of tokens
on a device, A numbers that fade a state.  A walk in both directions is two walks.  FLOPs are
2 B N (H + D) for each pair of query and key that the mask allows, 2.5 times as many backward.
"""

from dataclasses import dataclass, replace
from math import lcm
from typing import Literal, get_args

from attnjax.parallel.layouts import Layout, runs

Mask = Literal["full", "causal", "window"]
Decay = Literal["none", "head", "channel", "delta"]

BACKWARD_FLOPS = 2.5


@dataclass(frozen=True)
class Attention:
    """The sizes of one layer; `bytes` of an element of q, k, v and `state_bytes` of what is summed.

    `window` is the number of keys that a query sees, itself and those before it; only the mask
    "window" looks at it.
    """

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    D: int
    bytes: int = 2
    state_bytes: int = 4
    mask: Mask = "causal"
    window: int = 4096

    def __post_init__(self):
        for name in ("B", "T", "S", "N", "K", "H", "D", "bytes", "state_bytes", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.mask not in get_args(Mask):
            expected = ", ".join(map(repr, get_args(Mask)))
            raise ValueError(f"mask is {self.mask!r}, expected one of {expected}")
        if self.N % self.K:
            raise ValueError(f"N={self.N}, K={self.K}: expected N to be a multiple of K")
        if self.mask != "full" and self.T != self.S:
            raise ValueError(f"mask {self.mask!r}: T={self.T}, S={self.S}, expected T = S")


@dataclass(frozen=True)
class Cost:
    """Of one device, the busiest: bytes sent, messages one after another, bytes held, FLOPs.

    `forward_steps` and `backward_steps` count collectives, or hops, on the critical path.
    """

    forward_bytes: float
    backward_bytes: float
    forward_steps: int
    backward_steps: int
    memory: float
    forward_flops: float

    @property
    def bytes(self) -> float:
        return self.forward_bytes + self.backward_bytes

    @property
    def backward_flops(self) -> float:
        return BACKWARD_FLOPS * self.forward_flops


# --------------------------------------------------------------------------- the strategies


def ring(a: Attention, P: int, layout: Layout = "contiguous") -> Cost:
    """Keys and values go around P devices; backward, their gradients go with them and home."""
    walks = ring_walks(a, P, layout)
    return Cost(
        forward_bytes=ring_forward_bytes(a, P, layout),
        backward_bytes=ring_backward_bytes(a, P, layout),
        forward_steps=sum(walks),
        backward_steps=sum(map(gradient_hops, walks)),
        memory=shard_bytes(a, P) + ring_extra_bytes(a, P),
        forward_flops=pairwise_flops(a, busiest_area(a, P, layout)),
    )


def ulysses(a: Attention, P: int) -> Cost:
    """Tokens of all heads become all tokens of some heads, and the output goes back."""
    if reason := ulysses_reason(a, P):
        raise ValueError(f"ulysses: {reason}")
    return Cost(
        forward_bytes=ulysses_forward_bytes(a, P),
        backward_bytes=ulysses_backward_bytes(a, P),
        forward_steps=2 if P > 1 else 0,  # q, k, v at once, then the output
        backward_steps=2 if P > 1 else 0,
        memory=shard_bytes(a, P) + ulysses_extra_bytes(a, P),
        forward_flops=pairwise_flops(a, area(a) / P),
    )


def allgather(a: Attention, P: int, layout: Layout = "contiguous") -> Cost:
    """Every device gets all keys and values; backward, their gradients are summed and scattered."""
    return Cost(
        forward_bytes=allgather_forward_bytes(a, P),
        backward_bytes=allgather_backward_bytes(a, P),
        forward_steps=min(P - 1, 1),
        backward_steps=min(P - 1, 1),
        memory=shard_bytes(a, P) + allgather_extra_bytes(a, P),
        forward_flops=pairwise_flops(a, busiest_area(a, P, layout)),
    )


def usp(a: Attention, R: int, U: int, layout: Layout = "contiguous") -> Cost:
    """Ulysses over U devices inside a ring of R; the layout is that of the ring."""
    if reason := ulysses_reason(a, U):
        raise ValueError(f"usp: {reason}")
    heads, around = usp_parts(a, R, U)
    outer = ring(around, R, layout)
    inner_steps = 2 if U > 1 else 0
    return Cost(
        forward_bytes=ulysses_forward_bytes(heads, U) + outer.forward_bytes,
        backward_bytes=ulysses_backward_bytes(heads, U) + outer.backward_bytes,
        forward_steps=inner_steps + outer.forward_steps,
        backward_steps=inner_steps + outer.backward_steps,
        memory=shard_bytes(a, R * U)
        + (ulysses_extra_bytes(heads, U) if U > 1 else 0)
        + ring_extra_bytes(around, R),
        forward_flops=outer.forward_flops,
    )


def lasp2(a: Attention, P: int, runs: int = 1, decay: Decay = "none") -> Cost:
    """Linear attention: one all-gather of states, of each of a device's runs of tokens.

    `runs` is 1 for contiguous tokens, 2 for zigzag.
    """
    return Cost(
        forward_bytes=lasp2_forward_bytes(a, P, runs, decay),
        backward_bytes=lasp2_backward_bytes(a, P, runs),
        forward_steps=min(P - 1, 1),
        backward_steps=min(P - 1, 1),
        memory=shard_bytes(a, P) + P * runs * (state_bytes(a) + decay_bytes(a, decay)),
        forward_flops=linear_flops(a, P),
    )


def lasp(a: Attention, P: int) -> Cost:
    """Linear attention as before LASP-2: a state passes from device to device, one after another.

    Each device sends once, and the last waits for P - 1 sends.  For comparison only: nothing here
    runs it.
    """
    each = state_bytes(a) if P > 1 else 0
    memory = shard_bytes(a, P) + 2 * state_bytes(a)
    return Cost(each, each, P - 1, P - 1, memory, linear_flops(a, P))


# --------------------------------------------------------------------------- ring


def ring_walks(a: Attention, P: int, layout: Layout = "contiguous") -> tuple[int, int]:
    """Hops of keys to the next devices, and to those before, until all queries have seen theirs.

    The keys of a window are those of the runs of tokens just before, which zigzag has on both
    sides; where the two walks are no shorter, one goes all the way around.
    """
    if layout not in ("contiguous", "zigzag"):
        raise ValueError(f"layout is {layout!r}, expected 'contiguous' or 'zigzag'")
    if a.mask != "window":
        return P - 1, 0
    of_device = runs(layout, P, 2)
    reach = -(-(a.window - 1) * P * of_device // a.S)
    if layout == "contiguous":
        return min(P - 1, reach), 0
    return (reach, reach) if 2 * reach < P - 1 else (P - 1, 0)


def ring_hops(a: Attention, P: int, layout: Layout = "contiguous") -> int:
    """How often keys move, in both directions together."""
    return sum(ring_walks(a, P, layout))


def gradient_hops(h: int) -> int:
    """Of the gradients of keys on a walk of h hops: along with the keys, then straight home."""
    return h + min(h, 1)


def ring_forward_bytes(a: Attention, P: int, layout: Layout = "contiguous") -> float:
    return ring_hops(a, P, layout) * keys_values(a, P) * a.bytes


def ring_backward_bytes(a: Attention, P: int, layout: Layout = "contiguous") -> float:
    back = sum(map(gradient_hops, ring_walks(a, P, layout)))
    return ring_forward_bytes(a, P, layout) + back * keys_values(a, P) * a.state_bytes


def ring_extra_bytes(a: Attention, P: int) -> float:
    """Keys and values in hand and on their way, backward also their gradients."""
    return 2 * keys_values(a, P) * (a.bytes + a.state_bytes) if P > 1 else 0


# --------------------------------------------------------------------------- ulysses, usp


def ulysses_reason(a: Attention, P: int) -> str | None:
    """Why the heads cannot be shared by P devices, or None."""
    return f"N={a.N} heads for {P} devices, expected a multiple of {P}" if a.N % P else None


def ulysses_heads(K: int, P: int) -> int:
    """Kx: key/value heads after the repetition that lets P devices share them evenly."""
    return lcm(K, P)


def ulysses_forward_bytes(a: Attention, P: int) -> float:
    output = queries(a, P, a.D)
    return (P - 1) / P * (queries(a, P, a.H) + output + _spread(a, P)) * a.bytes


def ulysses_backward_bytes(a: Attention, P: int, gradient_bytes: int | None = None) -> float:
    """The output's gradient goes there, those of q, k, v come back, `gradient_bytes` an element.

    None is `a.state_bytes`: gradients that are sent before they are rounded.
    """
    width = a.state_bytes if gradient_bytes is None else gradient_bytes
    come = (queries(a, P, a.H) + _spread(a, P)) * width
    return (P - 1) / P * (queries(a, P, a.D) * a.bytes + come)


def ulysses_extra_bytes(a: Attention, P: int) -> float:
    """q, k, v and the output by heads, backward also the gradients of q, k, v."""
    q, kv, out = queries(a, P, a.H), _spread(a, P), queries(a, P, a.D)
    return (q + kv) * (a.bytes + a.state_bytes) + out * a.bytes


def usp_parts(a: Attention, R: int, U: int) -> tuple[Attention, Attention]:
    """What the U devices that share heads hold together, and what goes around the R."""
    Kx = ulysses_heads(a.K, U)
    # the parts only count bytes, so their masks need not be those of a shorter sequence
    heads = replace(a, T=_even("T", a.T, R), S=_even("S", a.S, R))
    return heads, replace(a, N=a.N // U, K=Kx // U)


def _spread(a: Attention, P: int) -> float:
    """Elements of a device's keys and values with their heads repeated."""
    return keys_values(a, P) / a.K * ulysses_heads(a.K, P)


# --------------------------------------------------------------------------- all-gather


def allgather_forward_bytes(a: Attention, P: int) -> float:
    return (P - 1) * keys_values(a, P) * a.bytes


def allgather_backward_bytes(a: Attention, P: int) -> float:
    return (P - 1) * keys_values(a, P) * a.state_bytes


def allgather_extra_bytes(a: Attention, P: int) -> float:
    """All keys and values, backward also all their gradients."""
    return P * keys_values(a, P) * (a.bytes + a.state_bytes) if P > 1 else 0


# --------------------------------------------------------------------------- linear attention


def decay_width(H: int, decay: Decay = "none") -> int:
    """A: numbers that ride with a state to tell how it fades; a factor of one where it does not."""
    if decay not in get_args(Decay):
        expected = ", ".join(map(repr, get_args(Decay)))
        raise ValueError(f"decay is {decay!r}, expected one of {expected}")
    return {"none": 1, "head": 1, "channel": H, "delta": H * H}[decay]


def state_bytes(a: Attention) -> int:
    """Of the states of all heads after one run of tokens; no T in it."""
    return a.B * a.N * a.H * a.D * a.state_bytes


def decay_bytes(a: Attention, decay: Decay = "none") -> int:
    """Of what one run of tokens does to the states before it."""
    return a.B * a.N * decay_width(a.H, decay) * a.state_bytes


def lasp2_forward_bytes(a: Attention, P: int, runs: int = 1, decay: Decay = "none") -> int:
    return (P - 1) * runs * (state_bytes(a) + decay_bytes(a, decay))


def lasp2_backward_bytes(a: Attention, P: int, runs: int = 1) -> int:
    return (P - 1) * runs * state_bytes(a)


def linear_flops(a: Attention, P: int) -> float:
    """A state is updated and read for each token; what is done inside of a chunk is left out."""
    return 4 * a.B * a.T * a.N * a.H * a.D / P


# --------------------------------------------------------------------------- parts of all


def queries(a: Attention, P: int, width: int) -> int:
    """Elements of a device's part of q (width H) or of the output (width D)."""
    return a.B * _even("T", a.T, P) * a.N * width


def keys_values(a: Attention, P: int) -> int:
    """Elements of a device's keys and values."""
    return a.B * _even("S", a.S, P) * a.K * (a.H + a.D)


def shard_bytes(a: Attention, P: int) -> int:
    """Of a device's q, k, v and output, which every strategy holds."""
    return (queries(a, P, a.H) + queries(a, P, a.D) + keys_values(a, P)) * a.bytes


def pairwise_flops(a: Attention, area: float) -> float:
    return 2 * a.B * a.N * (a.H + a.D) * area


def area(a: Attention) -> float:
    """Pairs that the mask allows, of T x S, with a triangle as half its square."""
    return a.T * a.S if a.mask == "full" else _area_of_first(a, a.T)


def busiest_area(a: Attention, P: int, layout: Layout = "contiguous") -> float:
    """The area of the device that has most."""
    if layout not in ("contiguous", "zigzag"):
        raise ValueError(f"layout is {layout!r}, expected 'contiguous' or 'zigzag'")
    t = _even("T", a.T, P)
    if a.mask == "full":
        return t * a.S
    if layout == "contiguous":
        return _area_of_first(a, a.T) - _area_of_first(a, a.T - t)
    _even("T", a.T, 2 * P)
    of_run = lambda c: _area_of_first(a, (c + 1) * t / 2) - _area_of_first(a, c * t / 2)
    return max(of_run(d) + of_run(2 * P - 1 - d) for d in range(P))


def _area_of_first(a: Attention, rows: float) -> float:
    """Of the first queries: a triangle until the window is full, a band from there on."""
    W = min(a.window, a.T) if a.mask == "window" else a.T
    return rows**2 / 2 if rows <= W else W * rows - W**2 / 2


def _even(name: str, length: int, P: int) -> int:
    if P < 1 or length % P:
        raise ValueError(f"{name}={length} for {P} devices, expected a multiple of the devices")
    return length // P
