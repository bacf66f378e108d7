"""Reports in TensorBoard: scalars, distributions, pictures, a dashboard and a card that explains the metrics."""
