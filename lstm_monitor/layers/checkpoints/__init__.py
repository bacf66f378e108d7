"""Recurrent layers in checkpoint files, of which only the weights are known."""
