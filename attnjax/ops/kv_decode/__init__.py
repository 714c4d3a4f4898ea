"""Which keys a decoder keeps: sinks, windows and other policies, as masks."""

from attnjax.ops.kv_decode.streaming_llm import VARIANT as SINK_WINDOW
from attnjax.ops.kv_decode.streaming_llm import sink_window_attention

VARIANTS = (SINK_WINDOW,)

__all__ = ["VARIANTS", "sink_window_attention"]
