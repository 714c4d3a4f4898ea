"""Linear attention, gated recurrences, and memories of constant size."""

from attnjax.op import gather
from attnjax.ops.linear_recurrent.additive import additive_attention, additive_attention_by_head
from attnjax.ops.linear_recurrent.care import CareWeights, Interaction, care_attention
from attnjax.ops.linear_recurrent.care_decoupled import Decoupled, decoupled_attention
from attnjax.ops.linear_recurrent.chela import chela
from attnjax.ops.linear_recurrent.comba import comba
from attnjax.ops.linear_recurrent.cottention import cottention, cottention_full
from attnjax.ops.linear_recurrent.damped_ema import damped_ema, damped_ema_convolution
from attnjax.ops.linear_recurrent.delta_net import delta_net
from attnjax.ops.linear_recurrent.efficient import efficient_attention, efficient_scaled_attention
from attnjax.ops.linear_recurrent.exponential import (
    exponential_attention,
    exponential_attention_full,
)
from attnjax.ops.linear_recurrent.fast import fast_attention, fast_attention_full
from attnjax.ops.linear_recurrent.favor import favor_attention, favor_attention_full
from attnjax.ops.linear_recurrent.flow import flow_attention
from attnjax.ops.linear_recurrent.flow_causal import flow_attention_causal
from attnjax.ops.linear_recurrent.gated_delta_net import gated_delta_net
from attnjax.ops.linear_recurrent.gated_delta_net2 import gated_delta_net2
from attnjax.ops.linear_recurrent.gated_delta_product import gated_delta_product
from attnjax.ops.linear_recurrent.gated_kalmanet import gated_kalmanet
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.ops.linear_recurrent.hedgehog import hedgehog_attention
from attnjax.ops.linear_recurrent.hgrn2 import hgrn2
from attnjax.ops.linear_recurrent.infini import infini_attention
from attnjax.ops.linear_recurrent.infini_delta import infini_delta_attention
from attnjax.ops.linear_recurrent.inline import inline_attention
from attnjax.ops.linear_recurrent.inline_local import inline_local_attention
from attnjax.ops.linear_recurrent.kda import kda
from attnjax.ops.linear_recurrent.lavo import lavo
from attnjax.ops.linear_recurrent.lightning import (
    gated_lightning_attention,
    lightning_attention,
    lightning_log_decays,
    lightning_printed_log_decays,
)
from attnjax.ops.linear_recurrent.linear import linear_attention
from attnjax.ops.linear_recurrent.local_linear import (
    LocalConcentration,
    local_concentration,
    local_linear_attention,
)
from attnjax.ops.linear_recurrent.log_linear import log_linear_attention
from attnjax.ops.linear_recurrent.log_normal import (
    log_normal_attention,
    log_normal_attention_full,
    match_moments,
)
from attnjax.ops.linear_recurrent.log_normal_diagonal import log_normal_diagonal_attention
from attnjax.ops.linear_recurrent.mamba2 import mamba2
from attnjax.ops.linear_recurrent.mamba3 import mamba3, mamba3_mimo
from attnjax.ops.linear_recurrent.mamba_mixer import mamba_mixer
from attnjax.ops.linear_recurrent.mambattention import mambattention
from attnjax.ops.linear_recurrent.mega import mega
from attnjax.ops.linear_recurrent.mesa_net import mesa_net
from attnjax.ops.linear_recurrent.mlstm import mlstm
from attnjax.ops.linear_recurrent.momentum_delta_net import momentum_delta_net
from attnjax.ops.linear_recurrent.multiscale_scan import multiscale_scan
from attnjax.ops.linear_recurrent.rala import rala
from attnjax.ops.linear_recurrent.regla import log_refined_gate, regla, safe_exp
from attnjax.ops.linear_recurrent.retention import retention, retention_log_decays
from attnjax.ops.linear_recurrent.rwkv6 import rwkv6
from attnjax.ops.linear_recurrent.rwkv7 import rwkv7
from attnjax.ops.linear_recurrent.selective_mixer import selective_token_mixer
from attnjax.ops.linear_recurrent.selective_ssm import selective_ssm
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.ops.linear_recurrent.taylor import taylor_crossover, taylor_shift, taylor_shift_direct
from attnjax.ops.linear_recurrent.titans import titans_memory
from attnjax.ops.linear_recurrent.titans_context import memory_as_context
from attnjax.ops.linear_recurrent.titans_gate import memory_as_gate
from attnjax.ops.linear_recurrent.ttt import ttt_memory

OPS = gather(globals())
