"""The history: every check of a training in files that nothing can lose, and the way to read them back."""
