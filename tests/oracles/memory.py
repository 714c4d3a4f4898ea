"""Oracles of attnjax.ops.recurrent: memories, convolutions and scans, as float64 loops."""
