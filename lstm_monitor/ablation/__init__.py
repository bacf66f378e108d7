"""Exact ablation of a live model: contexts in which it runs without some of its cells."""

from lstm_monitor.ablation.contexts import ablated as ablated
from lstm_monitor.ablation.contexts import thinned as thinned
