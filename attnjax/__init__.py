"""Attention mechanisms in JAX: each a short pure function over a few engines."""

from attnjax.core import features as features
from attnjax.core import masks as masks
from attnjax.core import mods as mods
from attnjax.core import normalizers as normalizers
from attnjax.core import select as select
from attnjax.core.attend import attend as attend
from attnjax.core.attend import attend_state as attend_state
from attnjax.core.attend import attention_weights as attention_weights
from attnjax.core.attend import dot_product_attention as dot_product_attention
from attnjax.core.attend import join_states as join_states
from attnjax.core.blockwise import Blockwise as Blockwise
from attnjax.core.choice import explain as explain
from attnjax.core.chunked import Chunked as Chunked
from attnjax.core.linear import linear_attend as linear_attend
from attnjax.core.select import Selection as Selection
from attnjax.core.select import attend_selected as attend_selected
