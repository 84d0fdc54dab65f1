"""LangGraph workflows and the benchmarks that run them."""
