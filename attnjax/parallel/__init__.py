"""Attention over many devices: implementations of the engines for use under `jax.shard_map`.

Inside shard_map, as `impl=` of an op, over this device's tokens:

    Ring(axis, layout)          keys and values walk from device to device
    Ulysses(axis)               heads for tokens, and back
    USP(ring_axis, head_axis)   both
    AllGather(axis)             every device gets all keys
    LASP2(axis)                 linear attention: one all-gather of states

An op that does more than attend, and looks at all tokens for it, refuses them and says so.

Over global arrays, every op: `shard(op, mesh, strategy)`.  Tokens are laid out by `layout` and
`unlayout`.
"""

from attnjax.core.sharding import cumsum as cumsum
from attnjax.parallel.allgather import AllGather as AllGather
from attnjax.parallel.lasp import LASP2 as LASP2
from attnjax.parallel.layouts import LaidOut as LaidOut
from attnjax.parallel.layouts import layout as layout
from attnjax.parallel.layouts import unlayout as unlayout
from attnjax.parallel.on_mesh import On as On
from attnjax.parallel.on_mesh import shard as shard
from attnjax.parallel.ring import Ring as Ring
from attnjax.parallel.ulysses import USP as USP
from attnjax.parallel.ulysses import Ulysses as Ulysses
