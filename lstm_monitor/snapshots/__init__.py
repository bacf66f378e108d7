"""Run held-out data once, record what each layer receives, and copy the layer."""
