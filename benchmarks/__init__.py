"""latentgen beside diffusers: speed, memory, import and load time, on the same weights. Run `python -m benchmarks`."""
