"""The monitor as a callback of Lightning's Trainer, of either package."""
