"""Tensor parallelism on two CPU ranks: each rank's twin belongs to its shard, and the ranks' sum is right."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.engine  # starts two processes that import vLLM: not for the quick run

RANK = pathlib.Path(__file__).with_name("tensor_parallel_rank.py")


def test_twins_follow_the_shards_of_qkv_merged_and_row_parallel_layers(tmp_path: pathlib.Path) -> None:
    ranks = [
        subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(RANK), str(rank), "2", str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VLLM_DIST_IDENT": tmp_path.name},  # names the ranks' shared memory
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            out, err = rank.communicate(timeout=300)
            assert rank.returncode == 0, err[-3000:]
            assert "ok" in out
    finally:
        for rank in ranks:
            rank.kill()
