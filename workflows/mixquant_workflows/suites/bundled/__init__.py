"""A suite of its own data: tools over a small made-up world."""
