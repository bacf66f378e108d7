"""What removing cells does to a network: exact, in contexts that always put it back."""
