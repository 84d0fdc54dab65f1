"""Runs the suites. Reading order: ``registry`` (suites by name), ``run`` (cases on one model), ``results`` (their file
and figures), ``session`` (policies on one engine), ``report``, ``replay``, ``trace``.

``peers`` compares with other stacks.
"""
