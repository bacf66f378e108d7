"""How many cells a task needs: one network trained at each size."""
