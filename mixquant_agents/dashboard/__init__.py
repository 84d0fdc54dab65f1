"""The dashboard: a live web page over the turn store, and the same as one HTML file. Reads the store, never writes
it.

Reading order: :mod:`server` (starts it) with :mod:`auth` (who may see it) → :mod:`live` (pages that follow the store of
:mod:`store_source`) → :mod:`views`, :mod:`turn_page` and :mod:`compare` (the pages as markup) with :mod:`query`
(addresses), :mod:`timeline` (the waterfall), :mod:`charts`, :mod:`formatting` and :mod:`templates` → :mod:`report` and
:mod:`plots` (files).
"""
