"""Watch one training: when to check, one check from snapshots to sinks, what is remembered between checks."""
