"""The engine of torch alone: for every device, type and kind, and what the other engines fall back to."""
