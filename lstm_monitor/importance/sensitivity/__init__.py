"""How much a network's output or loss depends on each cell, by one scan backwards in time."""
