"""Oracles of attnjax.ops.recurrent: feature maps and sums over all tokens, as float64 loops."""
