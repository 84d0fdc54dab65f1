"""Twins: a weight's quantized copy, how it is made, and how rows pass through it."""
