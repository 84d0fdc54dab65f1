"""The ``mixquant`` command."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run ``mixquant`` on ``sys.argv``; exits 0 (ok), 1 (failed) or 2 (wrong usage)."""
    from mixquant_agents.cli.app import run

    raise SystemExit(run())
