"""Statistics of attention maps and activations: pure functions of arrays."""

from attnjax.probes.activations import int8_round, kurtosis, largest_activation
from attnjax.probes.maps import attention_map, entropy, sparsity
from attnjax.probes.sinks import Sink, secondary_sinks, sink_rate, sink_scores

__all__ = [
    "Sink",
    "attention_map",
    "entropy",
    "int8_round",
    "kurtosis",
    "largest_activation",
    "secondary_sinks",
    "sink_rate",
    "sink_scores",
    "sparsity",
]
