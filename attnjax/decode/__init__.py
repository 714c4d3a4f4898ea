"""Decoding: caches as values, attention over them, and which tokens they keep."""

from attnjax.decode import modality, policies
from attnjax.decode.attend import Fork, attend_cache, fork, masses, renumbered
from attnjax.decode.caches import Cache
from attnjax.decode.causal import Causal, stepped
from attnjax.decode.codecs import Integers, Plain, int4, int8
from attnjax.decode.dense import Dense
from attnjax.decode.paged import Paged
from attnjax.decode.policies import Policy, drop, keep_best
from attnjax.decode.reading import Summed, attend_top
from attnjax.decode.window import Window

__all__ = [
    "Cache",
    "Causal",
    "Dense",
    "Fork",
    "Integers",
    "Paged",
    "Plain",
    "Policy",
    "Summed",
    "Window",
    "attend_cache",
    "attend_top",
    "drop",
    "fork",
    "int4",
    "int8",
    "keep_best",
    "masses",
    "modality",
    "policies",
    "renumbered",
    "stepped",
]
