"""Reports in Weights & Biases: scalars on their own step axis, histograms, tables, pictures, charts and alerts."""
