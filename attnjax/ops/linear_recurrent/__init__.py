"""Linear attention, gated recurrences, and memories of constant size."""

from attnjax.ops.linear_recurrent.additive import VARIANT as ADDITIVE
from attnjax.ops.linear_recurrent.additive import additive_attention
from attnjax.ops.linear_recurrent.care import VARIANT as CARE
from attnjax.ops.linear_recurrent.care import CareWeights, Interaction, care_attention
from attnjax.ops.linear_recurrent.care_decoupled import VARIANT as CARE_DECOUPLED
from attnjax.ops.linear_recurrent.care_decoupled import Decoupled, decoupled_attention
from attnjax.ops.linear_recurrent.chela import VARIANT as CHELA
from attnjax.ops.linear_recurrent.chela import chela
from attnjax.ops.linear_recurrent.cottention import VARIANTS as COTTENTION
from attnjax.ops.linear_recurrent.cottention import cottention, cottention_full
from attnjax.ops.linear_recurrent.damped_ema import VARIANTS as DAMPED_EMA
from attnjax.ops.linear_recurrent.damped_ema import damped_ema, damped_ema_convolution
from attnjax.ops.linear_recurrent.delta_net import VARIANT as DELTA_NET
from attnjax.ops.linear_recurrent.delta_net import delta_net
from attnjax.ops.linear_recurrent.efficient import VARIANTS as EFFICIENT
from attnjax.ops.linear_recurrent.efficient import efficient_attention, efficient_scaled_attention
from attnjax.ops.linear_recurrent.exponential import VARIANTS as EXPONENTIAL
from attnjax.ops.linear_recurrent.exponential import (
    exponential_attention,
    exponential_attention_full,
)
from attnjax.ops.linear_recurrent.fast import VARIANTS as FAST
from attnjax.ops.linear_recurrent.fast import fast_attention, fast_attention_full
from attnjax.ops.linear_recurrent.favor import VARIANTS as FAVOR
from attnjax.ops.linear_recurrent.favor import favor_attention, favor_attention_full
from attnjax.ops.linear_recurrent.flow import VARIANT as FLOW
from attnjax.ops.linear_recurrent.flow import flow_attention
from attnjax.ops.linear_recurrent.flow_causal import VARIANT as FLOW_CAUSAL
from attnjax.ops.linear_recurrent.flow_causal import flow_attention_causal
from attnjax.ops.linear_recurrent.gated_delta_net import VARIANT as GATED_DELTA_NET
from attnjax.ops.linear_recurrent.gated_delta_net import gated_delta_net
from attnjax.ops.linear_recurrent.gla import VARIANT as GLA
from attnjax.ops.linear_recurrent.gla import gla
from attnjax.ops.linear_recurrent.hedgehog import VARIANT as HEDGEHOG
from attnjax.ops.linear_recurrent.hedgehog import hedgehog_attention
from attnjax.ops.linear_recurrent.hgrn2 import VARIANT as HGRN2
from attnjax.ops.linear_recurrent.hgrn2 import hgrn2
from attnjax.ops.linear_recurrent.infini import VARIANT as INFINI
from attnjax.ops.linear_recurrent.infini import infini_attention
from attnjax.ops.linear_recurrent.infini_delta import VARIANT as INFINI_DELTA
from attnjax.ops.linear_recurrent.infini_delta import infini_delta_attention
from attnjax.ops.linear_recurrent.inline import VARIANT as INLINE
from attnjax.ops.linear_recurrent.inline import inline_attention
from attnjax.ops.linear_recurrent.inline_local import VARIANT as INLINE_LOCAL
from attnjax.ops.linear_recurrent.inline_local import inline_local_attention
from attnjax.ops.linear_recurrent.lavo import VARIANT as LAVO
from attnjax.ops.linear_recurrent.lavo import lavo
from attnjax.ops.linear_recurrent.lightning import VARIANTS as LIGHTNING
from attnjax.ops.linear_recurrent.lightning import (
    gated_lightning_attention,
    lightning_attention,
    lightning_log_decays,
)
from attnjax.ops.linear_recurrent.linear import VARIANT as LINEAR
from attnjax.ops.linear_recurrent.linear import linear_attention
from attnjax.ops.linear_recurrent.local_linear import VARIANT as LOCAL_LINEAR
from attnjax.ops.linear_recurrent.local_linear import LocalConcentration, local_linear_attention
from attnjax.ops.linear_recurrent.log_normal import VARIANTS as LOG_NORMAL
from attnjax.ops.linear_recurrent.log_normal import (
    log_normal_attention,
    log_normal_attention_full,
    match_moments,
)
from attnjax.ops.linear_recurrent.log_normal_diagonal import VARIANT as LOG_NORMAL_DIAGONAL
from attnjax.ops.linear_recurrent.log_normal_diagonal import log_normal_diagonal_attention
from attnjax.ops.linear_recurrent.mamba2 import VARIANT as MAMBA2
from attnjax.ops.linear_recurrent.mamba2 import mamba2
from attnjax.ops.linear_recurrent.mamba_mixer import VARIANT as MAMBA_MIXER
from attnjax.ops.linear_recurrent.mamba_mixer import mamba_mixer
from attnjax.ops.linear_recurrent.mambattention import VARIANT as MAMBATTENTION
from attnjax.ops.linear_recurrent.mambattention import mambattention
from attnjax.ops.linear_recurrent.mega import VARIANT as MEGA
from attnjax.ops.linear_recurrent.mega import mega
from attnjax.ops.linear_recurrent.mlstm import VARIANT as MLSTM
from attnjax.ops.linear_recurrent.mlstm import mlstm
from attnjax.ops.linear_recurrent.multiscale_scan import VARIANT as MULTISCALE_SCAN
from attnjax.ops.linear_recurrent.multiscale_scan import multiscale_scan
from attnjax.ops.linear_recurrent.rala import VARIANT as RALA
from attnjax.ops.linear_recurrent.rala import rala
from attnjax.ops.linear_recurrent.regla import VARIANT as REGLA
from attnjax.ops.linear_recurrent.regla import log_refined_gate, regla, safe_exp
from attnjax.ops.linear_recurrent.retention import VARIANT as RETENTION
from attnjax.ops.linear_recurrent.retention import retention, retention_log_decays
from attnjax.ops.linear_recurrent.rwkv6 import VARIANT as RWKV6
from attnjax.ops.linear_recurrent.rwkv6 import rwkv6
from attnjax.ops.linear_recurrent.selective_mixer import VARIANT as SELECTIVE_MIXER
from attnjax.ops.linear_recurrent.selective_mixer import selective_token_mixer
from attnjax.ops.linear_recurrent.selective_ssm import VARIANT as SELECTIVE_SSM
from attnjax.ops.linear_recurrent.selective_ssm import selective_ssm
from attnjax.ops.linear_recurrent.simple_gla import VARIANT as SIMPLE_GLA
from attnjax.ops.linear_recurrent.simple_gla import simple_gla
from attnjax.ops.linear_recurrent.taylor import VARIANTS as TAYLOR
from attnjax.ops.linear_recurrent.taylor import taylor_crossover, taylor_shift, taylor_shift_direct
from attnjax.ops.linear_recurrent.titans import VARIANT as TITANS
from attnjax.ops.linear_recurrent.titans import titans_memory
from attnjax.ops.linear_recurrent.titans_gate import VARIANT as TITANS_GATE
from attnjax.ops.linear_recurrent.titans_gate import memory_as_gate

VARIANTS = (
    *COTTENTION,
    DELTA_NET,
    GATED_DELTA_NET,
    GLA,
    HGRN2,
    *LIGHTNING,
    LINEAR,
    MAMBA2,
    MLSTM,
    REGLA,
    RETENTION,
    RWKV6,
    SIMPLE_GLA,
    ADDITIVE,
    CARE,
    CARE_DECOUPLED,
    *EFFICIENT,
    *EXPONENTIAL,
    *FAST,
    *FAVOR,
    FLOW,
    FLOW_CAUSAL,
    HEDGEHOG,
    INLINE,
    INLINE_LOCAL,
    LOCAL_LINEAR,
    *LOG_NORMAL,
    LOG_NORMAL_DIAGONAL,
    RALA,
    *TAYLOR,
    CHELA,
    *DAMPED_EMA,
    INFINI,
    INFINI_DELTA,
    LAVO,
    MAMBA_MIXER,
    MAMBATTENTION,
    MEGA,
    MULTISCALE_SCAN,
    SELECTIVE_MIXER,
    SELECTIVE_SSM,
    TITANS,
    TITANS_GATE,
)

__all__ = [
    "VARIANTS",
    "cottention",
    "cottention_full",
    "delta_net",
    "gated_delta_net",
    "gla",
    "hgrn2",
    "gated_lightning_attention",
    "lightning_attention",
    "lightning_log_decays",
    "linear_attention",
    "mamba2",
    "mlstm",
    "log_refined_gate",
    "regla",
    "safe_exp",
    "retention",
    "retention_log_decays",
    "rwkv6",
    "simple_gla",
    "additive_attention",
    "CareWeights",
    "Interaction",
    "care_attention",
    "Decoupled",
    "decoupled_attention",
    "efficient_attention",
    "efficient_scaled_attention",
    "exponential_attention",
    "exponential_attention_full",
    "fast_attention",
    "fast_attention_full",
    "favor_attention",
    "favor_attention_full",
    "flow_attention",
    "flow_attention_causal",
    "hedgehog_attention",
    "inline_attention",
    "inline_local_attention",
    "LocalConcentration",
    "local_linear_attention",
    "log_normal_attention",
    "log_normal_attention_full",
    "match_moments",
    "log_normal_diagonal_attention",
    "rala",
    "taylor_crossover",
    "taylor_shift",
    "taylor_shift_direct",
    "chela",
    "damped_ema",
    "damped_ema_convolution",
    "infini_attention",
    "infini_delta_attention",
    "lavo",
    "mamba_mixer",
    "mambattention",
    "mega",
    "multiscale_scan",
    "selective_token_mixer",
    "selective_ssm",
    "titans_memory",
    "memory_as_gate",
]
