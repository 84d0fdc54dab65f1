"""Number formats: the plain references that every kernel is compared with. Needs torch, not vllm."""
