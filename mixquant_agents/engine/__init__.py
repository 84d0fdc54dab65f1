"""Engines: the protocol and its implementations. Nothing heavy is imported here."""
