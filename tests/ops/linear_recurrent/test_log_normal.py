"""The oracle of `log_normal` in float64 loops, and its own tests."""

from tests.ops.plain import of_exponents, weighted


def log_normal_attention(q, k, v, alpha, beta):
    return weighted(alpha * q, beta * k, v, of_exponents, causal=True)


def log_normal_attention_full(q, k, v, alpha, beta):
    return weighted(alpha * q, beta * k, v, of_exponents, causal=False)
