"""GPU kernels in Triton: `flash` behind attend, `linear` behind linear_attend.

They know nothing of attnjax's variants and import only jax, and triton inside functions, so that an
installation without a GPU imports everything.  See README.md beside this file.
"""
