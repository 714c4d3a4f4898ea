"""Fused attention in Triton: any score modification, mask and normalizer, forward and backward."""
