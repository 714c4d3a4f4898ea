"""Engine 2: linear attention and gated recurrences."""
