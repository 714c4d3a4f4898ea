"""Engine 1, pairwise attention: scores of pairs, over tiles of the score matrix."""
