"""GPU side of the plugin: kernels, matrix products, graph variants, start-up measurement. Nothing here is imported on CPU."""
