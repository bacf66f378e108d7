"""The monitor as a callback of Keras 3, on the torch and jax backends."""
