"""The arithmetic: routed operations, their fused forms, kernels beside their plain references, matrix products."""
