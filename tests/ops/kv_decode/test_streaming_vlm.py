"""StreamingVLM's cache: the oracle moves and cuts a list, round by round."""

import jax
import numpy as np
import pytest

from attnjax.ops.kv_decode import streaming_vlm
from attnjax.ops.kv_decode.streaming_vlm import ANSWER, SYSTEM, USER, VISION
from tests.laws.cases import BY_NAME


def streaming_vlm_oracle(kinds, rounds, now, vision_rounds, text_rounds, sink, window):
    kinds, rounds = np.asarray(kinds), np.asarray(rounds)
    prompt = [j for j in range(len(kinds)) if kinds[j] == SYSTEM]
    previous, rest = [], []
    for r in range(now + 1):  # round r begins: what is too old goes, then its tokens come
        gone = lambda j, kind, most, r=r: kinds[j] == kind and rounds[j] <= r - most
        moved = [j for j in rest if gone(j, ANSWER, text_rounds)]
        rest = [
            j
            for j in rest
            if not (j in moved or gone(j, USER, text_rounds) or gone(j, VISION, vision_rounds))
        ]
        previous += moved
        if len(previous) > sink + window:
            previous = previous[:sink] + previous[len(previous) - window :]
        if r < now:
            rest += [j for j in range(len(kinds)) if rounds[j] == r and kinds[j] != SYSTEM]
    kept = prompt + previous + rest
    return np.array(kept + [-1] * (len(kinds) - len(kept)))


def _drawn():
    args = BY_NAME["streaming_vlm"].sample()
    return args["kinds"], args["rounds"]


@pytest.mark.parametrize("rounds", [(1, 1), (4, 2), (2, 4), (2, 1)])
@pytest.mark.parametrize("cut", [(0, 2), (2, 0), (3, 3)])
def test_other_settings(rounds, cut):
    settings = dict(
        zip(("vision_rounds", "text_rounds", "sink", "window"), rounds + cut, strict=True)
    )
    got = streaming_vlm(*_drawn(), 5, **settings)
    np.testing.assert_array_equal(got, streaming_vlm_oracle(*_drawn(), 5, **settings))


def test_one_program_takes_every_round_and_the_cache_stays_small():
    kinds, rounds = _drawn()
    settings = {"vision_rounds": 2, "text_rounds": 1, "sink": 1, "window": 1}
    policy = jax.jit(lambda now: streaming_vlm(kinds, rounds, now, **settings))
    for now in range(5, 9):
        np.testing.assert_array_equal(policy(now), streaming_vlm(kinds, rounds, now, **settings))
        assert (policy(now) >= 0).sum() <= 2 + 2 + 2 * 2 + 3  # prompt, old answers, frames, text
    assert policy._cache_size() == 1


def test_a_cut_token_never_comes_back():
    kinds, rounds = _drawn()
    settings = {"vision_rounds": 2, "text_rounds": 1, "sink": 1, "window": 1}
    seen = [set(np.asarray(streaming_vlm(kinds, rounds, now, **settings))) for now in range(5, 9)]
    assert all(later <= earlier | {-1} for earlier, later in zip(seen, seen[1:], strict=False))
