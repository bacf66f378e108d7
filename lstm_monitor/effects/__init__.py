"""What removing cells does to a network, on fixed runs of it."""
