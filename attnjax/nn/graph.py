"""Layers of attention along the edges of a graph."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from attnjax.ops.graph_geometric.edges import Edges

Along = Callable[..., jax.Array]


class GraphLayer(nnx.Module):
    """x (B,T,inputs) -> (B,T,heads * width), by attention to the senders of a node's edges.

    `attend(q, k, to, by, edges)` gets every node as a receiver, q (B,T,N,H), and as a sender, k,
    and two vectors (N,H).  With the ops of `graph_geometric` a layer is that of

        GATv2       lambda q, k, to, by, edges: gatv2_attention(q, k, to, edges)
        GAT         lambda q, k, to, by, edges: gat_attention(k, k, to, by, edges)
        SuperGAT    lambda q, k, to, by, edges: supergat_mixed(k, to, by, edges)

    of which the last two have one map for both.
    """

    def __init__(self, inputs: int, heads: int, width: int, attend: Along, *, rngs: nnx.Rngs):
        linear = lambda: nnx.Linear(inputs, heads * width, use_bias=False, rngs=rngs)
        vector = lambda: nnx.Param(rngs.params.normal((heads, width)) * width**-0.5)
        self.receivers, self.senders = linear(), linear()
        self.to, self.by = vector(), vector()
        self.attend = attend

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The nodes as receivers and as senders, (B,T,N,H) each."""
        heads = lambda y: y.reshape(*y.shape[:2], *self.to.shape)
        return heads(self.receivers(x)), heads(self.senders(x))

    def __call__(self, x: jax.Array, edges: Edges) -> jax.Array:
        q, k = self.project(x)
        out = self.attend(q, k, self.to[...], self.by[...], edges)
        return out.reshape(*x.shape[:2], out.shape[2] * out.shape[3])


class GraphNet(nnx.Module):
    """Classifies nodes: x (B,T,inputs) and edges -> logits (B,T,classes).

    As many layers as there are `attends`, each of `heads` heads of `width`, elu behind each, and a
    linear map.  `hidden` gives what each layer reads, and the last map.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        attends: Sequence[Along],
        *,
        heads: int = 4,
        width: int = 16,
        rngs: nnx.Rngs,
    ):
        sizes = [inputs] + [heads * width] * len(attends)
        made = zip(sizes, attends, strict=False)
        self.layers = nnx.List([GraphLayer(n, heads, width, op, rngs=rngs) for n, op in made])
        self.head = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def hidden(self, x: jax.Array, edges: Edges) -> list[jax.Array]:
        """x, then what follows each layer."""
        seen = [x]
        for layer in self.layers:
            seen.append(jax.nn.elu(layer(seen[-1], edges)))
        return seen

    def __call__(self, x: jax.Array, edges: Edges) -> jax.Array:
        return self.head(self.hidden(x, edges)[-1])
