"""Python that a model wrote, run where it can do no harm."""

from mixquant_tools.jail.runner import PythonJail, Run, python_tool

__all__ = ["PythonJail", "Run", "python_tool"]
