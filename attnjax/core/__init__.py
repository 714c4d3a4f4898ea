"""The engines, and the values that compose with them."""
