"""The command ``lstm-monitor``: reports of runs and of checkpoints, and runs side by side."""
