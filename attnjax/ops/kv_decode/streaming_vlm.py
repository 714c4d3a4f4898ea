"""StreamingVLM's cache: frames leave soon, text by rounds; old answers keep a sink and a window.

    kept of a token of round r when round `now` begins:
        the system's prompt                      always
        a frame                                  r > now - vision_rounds
        the user's text                          r > now - text_rounds
        an answer                                r > now - text_rounds, or it is among the first
                                                 `sink` or the last `window` of the older answers
    slots: the prompt, then older answers, then the rest, each in the order of the text

    tokens = streaming_vlm(kinds, rounds, now)
    k, v = (take_tokens(x, jnp.maximum(tokens, 0)[None, :, None]) for x in (k, v))

Keys are kept before their rotary positions and turned by their slots, 0 .. (tokens >= 0).sum() - 1,
behind which `masks.lengths` hides the rest; or by their places in the text, `tokens`.

Paper: Xu et al., "StreamingVLM: Real-Time Understanding for Infinite Video Streams", 2025,
arXiv:2510.09608; code: mit-han-lab/streaming-vlm, `process_past_kv`.
Limits: rounds that reach back to the first keep all.
Differs: the tokens that frame a message go with it when the caller gives them its kind; the
released code deletes them as it moves an answer.  `frame_positions` numbers what is kept in three
dimensions.  What a trained model needs is the caller's: full attention in short clips that overlap.
"""

import jax.numpy as jnp
import numpy as np

from attnjax.op import Limit, Op, by_sizes
from attnjax.typing import Array, Int

SYSTEM, VISION, USER, ANSWER = range(4)

Tokens = Int[Array, " S"]


def streaming_vlm(
    kinds: Tokens,
    rounds: Tokens,
    now: int | Array,
    *,
    vision_rounds: int = 16,
    text_rounds: int = 16,
    sink: int = 512,
    window: int = 512,
) -> Tokens:
    """The token in each slot of the cache when round `now` begins; -1 where there is none.

    kinds are SYSTEM, VISION, USER and ANSWER.  What is dropped once is dropped at every later
    `now`, so the tokens may be those of the whole text or those kept before, in their order.
    """
    recent = rounds > now - jnp.where(kinds == VISION, vision_rounds, text_rounds)
    older = (kinds == ANSWER) & ~recent
    rank, count = jnp.cumsum(older) - 1, older.sum()
    held = older & ((rank < sink) | (rank >= count - window))
    prompt = kinds == SYSTEM
    group = jnp.where(prompt, 0, jnp.where(held, 1, jnp.where(recent, 2, 3)))
    order = jnp.argsort(group, stable=True)
    slots = jnp.arange(order.size)
    return jnp.where(slots < (group < 3).sum(), order, -1).astype(jnp.int32)


def _kinds(S: int) -> np.ndarray:
    """A prompt, then rounds of two frames, a word of the user and two of an answer."""
    rounds = [VISION, VISION, USER, ANSWER, ANSWER] * S
    return np.array([SYSTEM, SYSTEM, *rounds])[:S]


def _all(kinds: Tokens) -> Tokens:
    """Nobody has spoken before the rounds that are kept."""
    return jnp.arange(kinds.size)


OPS = (
    Op(
        streaming_vlm,
        papers=(339,),
        draw={
            "kinds": by_sizes(lambda z: _kinds(z["S"])),
            "rounds": by_sizes(lambda z: np.maximum(np.arange(z["S"]) - 2, 0) // 5),
            "now": 5,
            "vision_rounds": 2,
            "text_rounds": 3,
            "sink": 1,
            "window": 2,
        },
        sizes={"S": 27},
        limits=(Limit("all rounds", {"vision_rounds": 6, "text_rounds": 6}, _all),),
    ),
)
