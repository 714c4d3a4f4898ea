"""GPU kernels behind `impl="triton"` and `impl="mosaic"`; none has landed yet.

They will know nothing of attnjax's variants and import only jax and, inside functions, triton.
"""
