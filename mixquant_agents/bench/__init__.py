"""Measurements behind ``mixquant bench``."""
