"""The records that stages pass on, and what every stage needs: errors, guard, undisturbed, trees, codec, processes."""
