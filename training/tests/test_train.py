"""The training run's schedule."""

from __future__ import annotations

import pytest

from mixquant_training.train import rate_at


def test_schedule_in_two_runs_equals_one() -> None:
    whole = [rate_at(share, 0.0, 1.0, 1e-3) for share in (0.1, 0.4, 0.6, 0.9, 1.0)]
    first = [rate_at(share, 0.0, 0.5, 1e-3) for share in (0.2, 0.8)]
    second = [rate_at(share, 0.5, 1.0, 1e-3) for share in (0.2, 0.8, 1.0)]
    assert [*first, *second] == pytest.approx(whole)
    assert rate_at(0.0, 0.5, 1.0, 1e-3) == 0.0  # the optimizer begins anew, so each run warms up
    assert rate_at(1.0, 0.0, 1.0, 1e-3) == pytest.approx(1e-5)
