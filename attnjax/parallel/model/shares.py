"""Equal shares: long caches are cut, so that all workers of a device finish a step together.

    chunk   = the least number of pages for which all requests make at most `workers` chunks
    a chunk of p pages costs p + 2 queries; chunks go, the longest first, to whoever has least to do

What the chunks of a request leave is merged, `join_states`: any cut gives the same attention.  And
the bytes that a step of decoding reads, where requests begin alike and read that once or each.

Ye et al., "FlashInfer: Efficient and Customizable Attention Engine for LLM Inference Serving",
2025, arXiv:2501.01005; code: flashinfer-ai/flashinfer, `scheduler.cuh`.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

PAPERS = (251,)


class Share(NamedTuple):
    """Pages start .. stop - 1 of a request."""

    request: int
    start: int
    stop: int

    @property
    def pages(self) -> int:
        return self.stop - self.start


def least_chunk(pages: Sequence[int], workers: int, least: int = 1) -> int:
    """The number of pages of a chunk, `least` or more; that of the longest if requests are many."""
    if workers < 1 or least < 1:
        raise ValueError(f"workers, least: {workers}, {least}; expected at least 1")
    low, high = least, max(least, *pages, 1)
    while low < high:
        middle = (low + high) // 2
        if sum(-(-n // middle) for n in pages) > workers:
            low = middle + 1
        else:
            high = middle
    return low


def equal_shares(
    pages: Sequence[int], workers: int, *, queries: int = 1, least: int = 1
) -> tuple[tuple[Share, ...], ...]:
    """What each worker reads: `pages` are those of each request, `queries` its rows of a step."""
    chunk = least_chunk(pages, workers, least)
    cuts = [
        Share(request, start, min(start + chunk, n))
        for request, n in enumerate(pages)
        for start in range(0, n, chunk)
    ]
    work = [(0, worker) for worker in range(workers)]
    shares: list[list[Share]] = [[] for _ in range(workers)]
    for share in sorted(cuts, key=lambda share: -share.pages):
        cost, worker = heapq.heappop(work)
        shares[worker].append(share)
        heapq.heappush(work, (cost + share.pages + 2 * queries, worker))
    return tuple(map(tuple, shares))


def bytes_of_a_step(own: Sequence[int], prefix: int, token_bytes: int, *, once: bool) -> int:
    """Bytes of keys and values read for all requests, of `own` tokens behind `prefix` common ones.

    `once` for `cascade_attention`, which reads the prefix for all of them together.
    """
    return token_bytes * (sum(own) + prefix * (1 if once else len(own)))
