"""Engine 2: linear attention and gated recurrences.  The signature, checks, and the choice.

The recurrence stands in `steps`; its fast form in `chunked`.  Feature maps for q and k are in
`features`.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.core import dispatch
from attnjax.core.dispatch import Implementation, pick
from attnjax.core.numerics import working_dtype
from attnjax.core.pairwise.operands import Shape
from attnjax.core.pairwise.request import check_qkv
from attnjax.core.recurrence.chunked import Chunked, Fastest, Parallel
from attnjax.core.recurrence.documents import Documents as Documents
from attnjax.core.recurrence.documents import Packed, packed
from attnjax.core.recurrence.steps import RecurrenceRequest, Recurrent, Tokens
from attnjax.core.recurrence.triton import Triton
from attnjax.core.sharding import on_any_mesh, pvary_like, sharding_of
from attnjax.typing import Array, Float, Int, K, Q, V

# (values (B,T,N,D), denominator (B,T,N,1)) -> (B,T,N,D)
Normalize = Callable[[Array, Array], Array]
LogDecay = Float[Array, " N"] | Float[Array, "B S N"] | Float[Array, "B S N H"]
Strength = Float[Array, "B S N"]
Vectors = Float[Array, "B S _ H"]  # of the N heads, or of the K
Erase = tuple[Vectors, Vectors | None]

Impl = Annotated[dispatch.Impl, "linear_attend"]
"""What `impl` may be where it goes to this engine; records of ops read the engine off it."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    "recurrent": Recurrent(),
    "chunked": Chunked(),
    "parallel": Parallel(),
    "triton": Triton(),
}


class State(NamedTuple):
    """What the tokens so far leave behind, in float32 (float64 for float64 inputs).

    memory (B,N,H,D), the sum of the decayed k u^T; denominator (B,N,H), that of k alone, where
    there is a `normalize`; document (B,), the id of the last token's, where there are `documents`.
    """

    memory: Float[Array, "B N H D"]
    denominator: Float[Array, "B N H"] | None = None
    document: Int[Array, " B"] | None = None


@on_any_mesh
def linear_attend(
    q: Q,
    k: K,
    v: V,
    *,
    log_decay: LogDecay | None = None,
    beta: Strength | None = None,
    erase: Erase | None = None,
    normalize: Normalize | None = None,
    block: int | None = 1,
    writes: int = 1,
    documents: Documents | None = None,
    state: State | None = None,
    return_state: bool = False,
    chunk: int = 64,
    impl: Impl = None,
) -> Any:
    """o_t = q_t . S_t, with S_t = a_t S_{t-1} + k_t v_t^T and a = exp(log_decay).

    With beta, the delta rule: beta_t (v_t - k_t . a_t S_{t-1}) is written in the place of v_t.
    With erase = (r, w), transitions are diagonal plus low rank:

        S_t = a_t S_{t-1} - w_t (r_t . S_{t-1})^T + k_t v_t^T

    q (B,T,N,H), k (B,S,K,H), v (B,S,K,D) -> (B,T,N,D); N is a multiple of K, and consecutive N/K
    query heads share a key/value head.  Nothing is scaled: multiply q by 1/sqrt(H) where a paper
    does.

    log_decay     <= 0: (N,), (B,S,N), or (B,S,N,H) of each key channel; no decay if None
    beta          (B,S,N) in [0, 2], the strength of the delta rule's writes; None: plain sums
    erase         (r, w), each (B,S,K,H) or (B,S,N,H): what reads the state before it fades, and
                  along what that is taken off; (r, None) where w is k, which is faster: then
                  k_t (v_t - r_t . S_{t-1})^T is written.  The delta rule is (beta a k, None) with
                  beta v for v.  None: nothing is erased.  Not with beta
    normalize     `f(values (B,T,N,D), denominator (B,T,N,1))`, the latter being q_t . sum of
                  the decayed k, such as `normalizers.divide`; None: values as they are.  Not with
                  beta or erase
    block         1: a query reads the state after its own token (causal).  b: after the last token
                  of its block of b tokens (block-causal).  None: after all tokens (both directions;
                  T and S may differ)
    writes        n: each token writes n times, S = n T, and is read after the last.  Everything of
                  S, decays included, is of each write; `block` and `documents` count tokens
    documents     (T,) or (B,T), ids of packed documents, the tokens of one behind each other (see
                  `masks.document_ids`): none reads what another wrote.  A token with a negative
                  id, padding, reads nothing, gives zero and writes nothing.  With blocks of b
                  tokens (T/b,) or (B,T/b), those of whole blocks; not with block None.  The first
                  document goes on from `state`, but not if that has ended with another id
    state         a `State` to start from, zeros if None
    return_state  also return the State after the last token: a run that is split anywhere (at the
                  end of a block) and carries it equals the whole run
    chunk         tokens that the chunked form multiplies at once; changes speed, not results
    impl          "recurrent", "chunked", "parallel" (O(T^2) memory), "triton" (GPUs), or an
                  Implementation: runs, or raises with the reason.  None takes what is fastest
                  here; `explain` tells which

    States, decays and sums are float32 (float64 for float64); the result has v's dtype, and q and k
    may be wider, as features often are.  A decay that float32 cannot hold, log_decay = -inf
    included, is zero: the past is forgotten.  A NaN or infinity in k, v or a gate reaches exactly
    the queries that read after it.  Memory is O(T), in the backward pass, too; forward mode works.

    Raises ValueError for shapes that do not fit, for a log_decay above 0 and a beta outside [0, 2]
    (where their values are known, outside jit), TypeError for dtypes and values of the wrong kind.
    """
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    z = check_qkv("linear_attend", q, k, v)
    _check_lengths(z, block, writes)
    of, starts = packed_documents(documents, q, state, impl, block), None
    if of is not None:
        of, of_writes = of.of_each(block or 1), of.of_each((block or 1) * writes)
        hide, starts = of_writes.without_padding, of_writes.starts
        k, v, log_decay, beta, erase = jax.tree.map(hide, (k, v, log_decay, beta, erase))
    tokens = Tokens(k, v, log_decay, beta, erase, starts)
    request, dtype = _prepare(q, tokens, z, normalize, block, writes, state)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"linear_attend: chunk is {chunk!r}, expected an integer of at least 1")
    known = {**IMPLEMENTATIONS, "chunked": Chunked(chunk)}
    chosen = pick("linear_attend", impl, request, known, lambda c: _choose(c, chunk), _headline)
    out, memory = chosen.run(request)
    last = State(memory)
    if normalize is not None:
        last = State(memory[..., :-1], memory[..., -1])
        out = normalize(out[..., :-1], out[..., -1:])
    out = out.astype(dtype)
    if of is not None:
        last = last._replace(document=of.last)
        out = of.without_padding(out)
    return (out, last) if return_state else out


def packed_documents(
    documents: Documents | None, q: Array, state: State | None, impl: Impl, block: int | None = 1
) -> Packed | None:
    """What `documents` say of the blocks of q (B,T,...), after `state`; None without them.

    For leaves that carry more than the engine does from token to token.

    Raises what `packed` does, ValueError for blocks that do not fill T, and TypeError for a state
    of another kind.
    """
    if not isinstance(state, State | None):
        raise TypeError(f"linear_attend: state is {type(state).__name__}, expected linear.State")
    (B, T), b = q.shape[:2], block or 1
    if documents is not None and (block is None or T % b):
        raise ValueError(
            f"linear_attend: block is {block} and T = {T} with documents, expected whole blocks"
        )
    before = None if state is None else state.document
    return packed(documents, (B, T // b), before, sharding_of(impl))


# ------------------------------------------------------------------------------------- the choice


def _choose(request: RecurrenceRequest, chunk: int) -> Implementation:
    if request.k.shape[1] == request.writes:  # a step of decoding: nothing to multiply at once
        return IMPLEMENTATIONS["recurrent"]
    if IMPLEMENTATIONS["triton"].supported(request) is None:
        return IMPLEMENTATIONS["triton"]
    return Fastest(chunk) if jax.default_backend() == "cpu" else Chunked(chunk)


def _headline(request: RecurrenceRequest) -> str:
    (B, T, N, H), (S, K, D) = request.q.shape, request.v.shape[1:]
    letters = ", ".join(f"{x}={n}" for x, n in zip("BTSNKHD", (B, T, S, N, K, H, D), strict=True))
    decay = {None: "no decay", 1: "decay of tokens"}.get(
        None if request.log_decay is None else request.log_decay.shape[-1], "decay of channels"
    )
    rule = "erasing" if request.erase is not None else "delta rule" if request.erases else "sums"
    return f"linear_attend: {letters}, {jnp.dtype(request.v.dtype).name}, {decay}, {rule}"


# ------------------------------------------------------------------------------------- the checks


def _prepare(
    q: Array,
    tokens: Tokens,
    z: Shape,
    normalize: Normalize | None,
    block: int | None,
    writes: int,
    state: State | None,
) -> tuple[RecurrenceRequest, jnp.dtype]:
    """The call, and the dtype of its result."""
    k, v, log_decay, beta, erase, starts = tokens
    if v.shape[2] != z.K:
        raise ValueError(f"linear_attend: v has {v.shape[2]} heads, expected k's K = {z.K}")
    given, dtype = v.dtype, working_dtype(jnp.result_type(q, k, v))
    if log_decay is not None:
        log_decay = _gate("log_decay", log_decay, z, ("N", "BSN", "BSNH"), -np.inf, 0.0)
        # exp(smallest) is the smallest normal number; less, even -inf, is as good as zero
        smallest = np.log(float(jnp.finfo(dtype).tiny))
        log_decay = jnp.maximum(log_decay.astype(dtype), smallest)
    if not (normalize is None or callable(normalize)):
        raise TypeError(
            f"linear_attend: normalize is {normalize!r}, expected None or a function such as "
            "normalizers.divide"
        )
    options = {"normalize": normalize, "beta": beta, "erase": erase}
    if len(both := [name for name, x in options.items() if x is not None]) > 1:
        told = f"{', '.join(both[:-1])} and {both[-1]} were given"
        raise ValueError(f"linear_attend: {told}, expected one of them")
    if beta is not None:
        beta = _gate("beta", beta, z, ("BSN",), 0.0, 2.0)
    erase = None if erase is None else _erasing(erase, z)
    normalized = normalize is not None
    memory = _memory(state, z, dtype, normalized)
    memory = pvary_like(memory, (q, k, v, log_decay, beta, erase))
    if starts is not None:
        starts = starts[..., None, None].astype(dtype)
    checked = k, v, log_decay, beta, erase, starts
    return RecurrenceRequest(q, *checked, memory, block, normalized, writes), given


def _check_lengths(z: Shape, block: int | None, writes: int) -> None:
    """Blocks and writes that fit T and S."""
    if block is not None and (not isinstance(block, int) or block < 1):
        raise ValueError(f"linear_attend: block is {block!r}, expected None or at least 1")
    if not isinstance(writes, int) or writes < 1:
        raise ValueError(f"linear_attend: writes is {writes!r}, expected an integer of at least 1")
    if block is None:
        if writes != 1:
            raise ValueError(f"linear_attend: writes is {writes} with block None, expected 1")
    elif z.S != writes * z.T:
        wanted = "T = S" if writes == 1 else f"S = {writes} T, writes T"
        raise ValueError(
            f"linear_attend: T = {z.T} and S = {z.S} with block {block}, expected {wanted}; "
            "block=None reads all of k and v"
        )


def _erasing(erase: Any, z: Shape) -> Erase:
    """The vectors as arrays."""
    if not isinstance(erase, tuple) or len(erase) != 2 or erase[0] is None:
        raise TypeError(
            f"linear_attend: erase is {type(erase).__name__}, expected a tuple (r, w) or (r, None)"
        )
    shapes = [(z.B, z.S, heads, z.H) for heads in dict.fromkeys((z.K, z.N))]
    for name, x in zip("rw", erase, strict=True):
        if x is None:
            continue
        if jnp.shape(x) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(
                f"linear_attend: erase has {name} of shape {jnp.shape(x)}, expected (B,S,K,H) or "
                f"(B,S,N,H) = {expected}"
            )
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            told = f"erase has {name} of dtype {jnp.result_type(x)}"
            raise TypeError(f"linear_attend: {told}, expected a floating-point dtype")
    return jax.tree.map(jnp.asarray, erase)


def _gate(
    name: str, x: Array, z: Shape, spellings: tuple[str, ...], low: float, high: float
) -> Array:
    """The gate as (B,S,N,1) or (B,S,N,H), its values checked where they are known."""
    x = jnp.asarray(x)
    shapes = {letters: tuple(getattr(z, n) for n in letters) for letters in spellings}
    if x.shape not in shapes.values():
        expected = " or ".join(f"({','.join(n)}) = {shape}" for n, shape in shapes.items())
        raise ValueError(f"linear_attend: {name} has shape {x.shape}, expected {expected}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"linear_attend: {name} has dtype {x.dtype}, expected a floating-point dtype"
        )
    if not isinstance(x, jax.core.Tracer):
        known = np.asarray(x)
        wrong = known[(known < low) | (known > high)]
        if wrong.size:
            allowed = f"at most {high:g}" if low == -np.inf else f"{low:g} to {high:g}"
            raise ValueError(f"linear_attend: {name} holds {float(wrong[0]):g}, expected {allowed}")
    if x.ndim == 1:
        x = jnp.broadcast_to(x, (z.B, z.S, z.N))
    return x if x.ndim == 4 else x[..., None]


def _memory(state: State | None, z: Shape, dtype: jnp.dtype, normalized: bool) -> Array:
    """The state to start from, (B,N,H,D), and one more value, the denominator, if it is kept."""
    shape = (z.B, z.N, z.H, z.D)
    if state is None:
        return jnp.zeros((*shape[:3], z.D + normalized), dtype)
    if normalized != (state.denominator is not None):
        kept = "keeps a denominator" if state.denominator is not None else "keeps no denominator"
        wanted = "with" if normalized else "without"
        raise ValueError(f"linear_attend: state {kept}, expected one of a call {wanted} normalize")
    parts: list[tuple] = [("memory", "B,N,H,D", state.memory, shape)]
    if state.denominator is not None:
        parts.append(("denominator", "B,N,H", state.denominator, shape[:3]))
    for name, letters, x, expected in parts:
        if x.shape != expected:
            raise ValueError(
                f"linear_attend: state.{name} has shape {x.shape}, expected ({letters}) = "
                f"{expected}"
            )
        if x.dtype != dtype:
            raise TypeError(
                f"linear_attend: state.{name} has dtype {x.dtype}, expected {jnp.dtype(dtype).name}"
            )
    if state.denominator is None:
        return state.memory
    return jnp.concatenate([state.memory, state.denominator[..., None]], axis=-1)
