"""Runs over their training, and side by side."""
