"""Equal shares: every page once, balance, the same attention; what a common prefix saves."""

import pytest

from attnjax import attend, attend_state, join_states
from attnjax.parallel.model.shares import bytes_of_a_step, equal_shares, least_chunk
from tests.helpers import near, qkv


@pytest.mark.parametrize("workers", [1, 3, 8, 20, 100])
def test_every_page_is_read_once_and_nobody_waits_long(workers):
    pages = [60, 1, 7, 0, 23]
    shares = equal_shares(pages, workers)
    assert len(shares) == workers
    read = sorted((s.request, page) for own in shares for s in own for page in range(*s[1:]))
    assert read == [(request, page) for request, n in enumerate(pages) for page in range(n)]
    costs = [sum(s.pages + 2 for s in own) for own in shares]
    chunk = least_chunk(pages, workers)
    assert max(costs) - min(costs) <= chunk + 2


def test_the_chunk_is_the_least_that_workers_can_take():
    pages = [60, 1, 7, 23]
    count = lambda chunk: sum(-(-n // chunk) for n in pages)
    for workers in range(4, 92):
        chunk = least_chunk(pages, workers)
        assert count(chunk) <= workers and (chunk == 1 or count(chunk - 1) > workers)
    assert least_chunk(pages, 2) == 60 and least_chunk(pages, 91, least=8) == 8
    with pytest.raises(ValueError, match="workers, least: 0, 1; expected at least 1"):
        least_chunk(pages, 0)


def test_shares_of_a_request_merge_to_its_attention():
    q, k, v = qkv(1, 1, 4, 8, S=22, K=2)
    parts = [
        attend_state(q, *(x[:, 2 * s.start : 2 * s.stop] for x in (k, v)))
        for own in equal_shares([11], 3)
        for s in own
    ]
    assert len(parts) == 3
    near(join_states(*parts), attend(q, k, v))


def test_bytes_fall_with_the_length_of_a_common_prefix():
    own, token = [10, 20, 30], 4 * 2 * 64
    saved = []
    for prefix in (0, 100, 1000):
        each = bytes_of_a_step(own, prefix, token, once=False)
        once = bytes_of_a_step(own, prefix, token, once=True)
        saved.append(each - once)
    assert saved == [0, 2 * 100 * token, 2 * 1000 * token]
    assert once * 3060 == each * 1060
