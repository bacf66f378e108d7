"""How much a network's output or loss depends on each cell, by one scan backwards in time."""

from lstm_monitor.sensitivity.scores import first_order as first_order
from lstm_monitor.sensitivity.scores import output_sensitivity as output_sensitivity
from lstm_monitor.sensitivity.scores import taylor as taylor
