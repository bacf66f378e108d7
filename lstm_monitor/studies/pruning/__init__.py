"""Smaller networks: copies of a model whose recurrent layers really hold fewer cells."""
