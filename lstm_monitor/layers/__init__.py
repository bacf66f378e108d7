"""Find recurrent layers in a module or a checkpoint, read their weights, and who reads them."""
