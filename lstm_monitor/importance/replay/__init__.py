"""Recorded calls of recurrent modules computed again here, whole or some of their cells."""
