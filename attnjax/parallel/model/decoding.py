"""What a cached token costs a step of decoding: numbers held, operations on them, by kind of layer.

                                 numbers of a layer     operations for each query token
    heads shared by groups       K (H + D)              2 N (H + D)
    latent (MLA, absorbed)       R + P                  2 N (R + P + R)
    factorized (MFA)             2 H                    4 N H
    its keys as values           H                      4 N H

Intensity is operations for each byte that is read: N / K for groups in 16 bits, 2 N for factorized
heads in 8 bits, whatever the batch, as each request reads a cache of its own.  Below what a device
does for each byte, memory sets the time.

Wang et al., "Step-3 is Large yet Affordable: Model-system Co-design for Cost-effective Decoding",
2025, arXiv:2507.19427.  Work on projections and experts is not in it.
"""

from typing import NamedTuple

PAPERS = (370,)


class CachedToken(NamedTuple):
    """Of one token in the cache of one layer."""

    numbers: int
    operations: int

    def intensity(self, itemsize: float) -> float:
        """Operations for each byte, with numbers of so many bytes."""
        return self.operations / (self.numbers * itemsize)


def grouped(N: int, K: int, H: int, D: int | None = None) -> CachedToken:
    """N query heads that share K heads of keys (H) and values (D, or H): multi-head for K = N."""
    if N % K:
        raise ValueError(f"N, K: {N}, {K}; expected N to be a multiple of K")
    width = H + (H if D is None else D)
    return CachedToken(K * width, 2 * N * width)


def latent(N: int, R: int, P: int) -> CachedToken:
    """N heads that read one latent of R numbers, with P more that are turned by positions."""
    return CachedToken(R + P, 2 * N * (R + P + R))


def factorized(N: int, H: int) -> CachedToken:
    """`mfa`: N query heads over one head of keys and values."""
    return grouped(N, 1, H)


def factorized_key_reuse(N: int, H: int) -> CachedToken:
    """`mfa_key_reuse`: values are made of keys, by a map that a query and a sum can take over."""
    return CachedToken(H, 4 * N * H)
