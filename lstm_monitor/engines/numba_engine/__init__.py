"""The engine of compiled loops for cells alone on the CPU in float32."""
