"""Experiments: one file a claim, each run by `python -m experiments.<claim> [--quick]`."""
