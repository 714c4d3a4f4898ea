"""Attention mechanisms in JAX: each a short pure function over a few engines."""

from attnjax.core import features as features
from attnjax.core import masks as masks
from attnjax.core import mods as mods
from attnjax.core import normalizers as normalizers
from attnjax.core.blocks import select as select
from attnjax.core.blocks.selection import Selection as Selection
from attnjax.core.dispatch import explain as explain
from attnjax.core.dropout import Dropout as Dropout
from attnjax.core.pairwise.attend import attend as attend
from attnjax.core.pairwise.attend import attend_state as attend_state
from attnjax.core.pairwise.attend import attention_scores as attention_scores
from attnjax.core.pairwise.attend import attention_weights as attention_weights
from attnjax.core.pairwise.attend import dot_product_attention as dot_product_attention
from attnjax.core.pairwise.attend import join_states as join_states
from attnjax.core.pairwise.blockwise import Blockwise as Blockwise
from attnjax.core.pairwise.measure import measure as measure
from attnjax.core.recurrence.chunked import Chunked as Chunked
from attnjax.core.recurrence.linear import linear_attend as linear_attend

__version__ = "0.1.0"
