"""Engine 3: blocks of keys chosen by content, an argument of `attend`."""
