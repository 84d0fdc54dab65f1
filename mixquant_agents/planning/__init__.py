"""How many engines agents need: ``workload`` (what agents do), ``steps`` (how long an engine step takes), ``simulate``
(agents on engines), ``capacity`` (the search), ``measure`` (the same on a real engine), ``trace`` (export).
"""
