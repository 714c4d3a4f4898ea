"""Which keys a decoder keeps: sinks, windows and other policies, as masks."""

from attnjax.op import gather
from attnjax.ops.kv_decode.streaming_llm import sink_window_attention

OPS = gather(globals())
