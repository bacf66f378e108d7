"""Run a layer's weights over inputs, coupled or each cell alone, by the fastest engine; all agree with the loop."""
