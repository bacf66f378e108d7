"""The engines behind `respond()`: one file an engine, all held to the plain loop in `loop.py`."""
