"""Attention on graphs and point sets: edges, pairs of atoms, invariants of vectors."""

from attnjax.op import gather
from attnjax.ops.graph_geometric.coulomb import coulomb_attention
from attnjax.ops.graph_geometric.edge_sampling import (
    column_mass,
    global_edge_sampling,
    local_edge_sampling,
    nearest,
)
from attnjax.ops.graph_geometric.edges import (
    Edges,
    edge_attend,
    edge_sum,
    edges_of,
    neighbor_attention,
    neighbor_distillation,
    neighbor_scores,
    of_receivers,
    of_senders,
    segment_softmax,
    with_self_loops,
)
from attnjax.ops.graph_geometric.gat import gat_attention
from attnjax.ops.graph_geometric.gatv2 import gatv2_attention
from attnjax.ops.graph_geometric.geometric_algebra import (
    geometric_attention,
    geometric_pool,
    geometric_vectors,
)
from attnjax.ops.graph_geometric.gin import HeadNets, gin_attention
from attnjax.ops.graph_geometric.gravity import gravity_pool
from attnjax.ops.graph_geometric.hops import hop_attention, hop_window, node_pairs, within
from attnjax.ops.graph_geometric.p_laplacian import p_laplacian, p_laplacian_cross
from attnjax.ops.graph_geometric.relation_attention import (
    chained,
    proximity_loss,
    relation_attention,
    relation_scores,
    relation_weights,
)
from attnjax.ops.graph_geometric.relative_molecule import (
    bessel_basis,
    relative_molecule_attention,
)
from attnjax.ops.graph_geometric.reversed_attention import (
    dependencies,
    received,
    reversed_attention,
)
from attnjax.ops.graph_geometric.supergat import (
    edge_logits,
    supergat_loss,
    supergat_mixed,
    supergat_scaled,
)

OPS = gather(globals())
