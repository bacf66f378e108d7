"""Stimuli, and what a frozen layer answers: simulated, at rest, and linear in closed form."""
