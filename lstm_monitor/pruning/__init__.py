"""Smaller networks: copies of a model whose recurrent layers really hold fewer cells."""

from lstm_monitor.pruning.thinning import prune as prune
