"""What the whole network needs each cell for: sensitivity, removal, and the rankings."""
