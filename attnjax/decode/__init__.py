"""Decoding: caches as values, attention over them, and which tokens they keep."""

from attnjax.decode import policies
from attnjax.decode.attend import Fork, attend_cache, fork, masses, renumbered
from attnjax.decode.caches import Cache, Dense, Window
from attnjax.decode.causal import Causal, stepped
from attnjax.decode.codecs import Integers, Plain, int4, int8
from attnjax.decode.paged import Paged
from attnjax.decode.policies import Policy, drop, keep_best

__all__ = [
    "Cache",
    "Causal",
    "Dense",
    "Fork",
    "Integers",
    "Paged",
    "Plain",
    "Policy",
    "Window",
    "attend_cache",
    "drop",
    "fork",
    "int4",
    "int8",
    "keep_best",
    "masses",
    "policies",
    "renumbered",
    "stepped",
]
