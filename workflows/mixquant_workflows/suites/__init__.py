"""Benchmarks others wrote, run on the bundled graphs: cases, a graph, the official checker.

Data comes from installed packages at run time, is checked against pinned checksums, and is never part of this
repository.
"""
