"""Texts that a TinyLM goes on with: greedily or by chance, from any cache, policy or state."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import decode
from attnjax.lab.models import TinyLM, for_layers


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from logits (B,vocab).

    temperature  what logits are divided by; 0 is greedy: the largest
    top_p        only the fewest tokens whose probabilities, after that, reach this sum.  Holtzman
                 et al. 2019, arXiv:1904.09751
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"Sampling: temperature, top_p are {self.temperature}, {self.top_p}; expected at "
                "least 0, and a share in (0, 1]"
            )

    def __call__(self, logits: jax.Array, key: jax.Array) -> jax.Array:
        """Tokens (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1).astype(jnp.int32)
        logits = logits.astype(jnp.float32) / self.temperature
        if self.top_p < 1:
            ordered = -jnp.sort(-logits, axis=-1)
            mass = jax.nn.softmax(ordered, axis=-1)
            inside = jnp.cumsum(mass, axis=-1) - mass < self.top_p
            least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        return jax.random.categorical(key, logits).astype(jnp.int32)


GREEDY = Sampling()


def generate(
    model: TinyLM,
    prompts: Any,
    tokens: int,
    *,
    lengths: Sequence[int] | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    caches: Any = None,
    policies: Any = None,
) -> np.ndarray:
    """The prompts (B,P) and what the model goes on with: (B, P + tokens) int32.

    lengths   (B,) how long each prompt is, padded behind: a shorter one is gone on with earlier.
              None: all P
    caches    as `TinyLM.start` takes them; None: `decode.Dense` of all tokens, or under policies of
              the tokens that they keep besides those of a call
    policies  as `TinyLM.step` takes them; a prompt is one call, then each token

    A prompt as far as all have one, and the loop behind it, are one program.  The same seed gives
    the same text.  Raises ValueError for lengths that do not fit.
    """
    prompts = np.asarray(prompts, np.int32)
    B, P = prompts.shape
    ends = np.full(B, P) if lengths is None else np.asarray(lengths)
    if ends.shape != (B,) or not ((ends >= 1) & (ends <= P)).all():
        raise ValueError(
            f"generate: lengths are {lengths}, expected (B,) = ({B},) from 1 to P = {P}"
        )
    if tokens < 0:
        raise ValueError(f"generate: tokens is {tokens}, expected at least 0")
    first = int(ends.min())
    depth = len(model.stack.blocks)
    if caches is None:
        caches = [_cache_for(policy, first) for policy in for_layers(policies, depth)]
    hashable = lambda x: tuple(x) if isinstance(x, list) else x
    graph, params = nnx.split(model)
    padded = jnp.asarray(np.pad(prompts, ((0, 0), (0, tokens))))
    key = jax.random.key(seed)
    how = hashable(caches), hashable(policies), sampling
    return np.asarray(_generated(graph, first, *how, params, padded, jnp.asarray(ends), key))


@functools.cache
def _cache_for(policy: Any, first: int) -> Any:
    """A cache of all tokens; of those a policy keeps and those of the longest call."""
    if policy is None:
        return decode.Dense.empty

    def make(B: int, length: int, K: int, H: int) -> decode.Dense:
        return decode.Dense.empty(B, min(length, policy.budget + first), K, H, heads=K)

    return make


@functools.partial(jax.jit, static_argnums=range(5))
def _generated(
    graph: Any,
    first: int,
    caches: Any,
    policies: Any,
    sampling: Sampling,
    params: Any,
    text: jax.Array,
    ends: jax.Array,
    key: jax.Array,
) -> jax.Array:
    model = nnx.merge(graph, params)
    B, total = text.shape
    state = model.start(B, total, caches)
    logits, state = model.step(text[:, :first], state, policies)

    def one_more(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
        logits, state = carry
        drawn = sampling(logits, jax.random.fold_in(key, t))
        token = jnp.where(t < ends, text[:, t], drawn)
        logits, state = model.step(token[:, None], state, policies)
        return (logits[:, -1], state), token

    places = jnp.arange(first, total)
    _, more = jax.lax.scan(one_more, (logits[:, -1], state), places)
    return jnp.concatenate([text[:, :first], more.T], axis=1)
