"""Number formats: in the module of its name each format's reference, its emulation, and its native twin.

``registry`` finds them by name; what policies and devices need to know of them is in
:mod:`mixquant_agents.precision.formats`.
"""
