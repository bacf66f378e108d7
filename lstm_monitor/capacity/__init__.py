"""How many cells a task needs: one network trained at each size."""

from lstm_monitor.capacity.asking import capacity_study as capacity_study
