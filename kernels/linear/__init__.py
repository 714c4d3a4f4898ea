"""Chunked linear attention by Triton kernels."""
