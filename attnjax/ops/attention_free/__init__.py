"""Mixers of tokens without attention: pooling, convolutions, filters, products with gates."""

from attnjax.op import gather
from attnjax.ops.attention_free.activator import activator_block
from attnjax.ops.attention_free.causal_pair import causal_pair, causal_pair_in_context
from attnjax.ops.attention_free.extractor import extractor, extractor_by_root
from attnjax.ops.attention_free.fftnet import fftnet, fftnet_modrelu
from attnjax.ops.attention_free.gated_cnn import gated_cnn_block
from attnjax.ops.attention_free.metaformer import metaformer_block, pool_mixer
from attnjax.ops.attention_free.ninformer import ninformer_gate
from attnjax.ops.attention_free.parcnet_v2 import oversized_gate, stretched
from attnjax.ops.attention_free.pervasive import (
    pervasive_alignment,
    pervasive_attention,
    pervasive_dense_layer,
)
from attnjax.ops.attention_free.spartan import spartan_channel_mixer, spartan_spatial_mixer
from attnjax.ops.attention_free.star import series_core, star_mixer
from attnjax.ops.attention_free.swift_additive import swift_additive_attention

OPS = gather(globals())
