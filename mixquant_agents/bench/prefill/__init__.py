"""``mixquant bench prefill``. Reading order: ``plan`` (cases, and which engines live together), ``run`` (rounds),
``engines`` (processes), ``worker`` and ``measure`` (inside one), ``agents``, ``stats``, ``report``.

``roofline`` predicts.
"""
