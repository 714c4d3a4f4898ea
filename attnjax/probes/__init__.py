"""Statistics of attention, of its maps and of activations: pure functions of arrays."""

from attnjax.core.pairwise.measure import measure
from attnjax.probes import edits
from attnjax.probes.activations import int8_round, kurtosis, largest_activation
from attnjax.probes.influence import influence
from attnjax.probes.maps import attention_map, entropy, log_variance, sparsity, spectral_gap
from attnjax.probes.rank import cumulative_spectrum, effective_rank, numerical_rank
from attnjax.probes.selection import best_selection, selection_recall
from attnjax.probes.sinks import Sink, secondary_sinks, sink_rate, sink_scores
from attnjax.probes.view import Page, view, view_file

__all__ = [
    "Page",
    "Sink",
    "attention_map",
    "best_selection",
    "cumulative_spectrum",
    "edits",
    "effective_rank",
    "entropy",
    "influence",
    "int8_round",
    "kurtosis",
    "largest_activation",
    "log_variance",
    "measure",
    "numerical_rank",
    "secondary_sinks",
    "selection_recall",
    "sink_rate",
    "sink_scores",
    "sparsity",
    "spectral_gap",
    "view",
    "view_file",
]
