"""Leaves: one mechanism of one paper in each file, written in the engines' words."""
