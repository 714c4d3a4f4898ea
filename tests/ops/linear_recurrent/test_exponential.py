"""Attention of exponential features: its oracles."""

from tests.ops.plain import of_exponents, weighted


def exponential_attention_oracle(q, k, v):
    return weighted(q, k, v, of_exponents, causal=True)


def exponential_attention_full_oracle(q, k, v):
    return weighted(q, k, v, of_exponents, causal=False)
