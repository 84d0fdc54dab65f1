"""The dashboard: a live web page over the turn store, and the same as one HTML file. Reads the store, never writes
it."""
