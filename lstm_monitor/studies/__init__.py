"""Experiments that run a network many times: ablation, capacity, pruning."""
