"""A few kills and full disks; `make kills` does hundreds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardc

KILLS = Path(__file__).with_name("kills.py")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and limited as Linux does it")
def test_what_a_kill_or_a_full_disk_leaves_is_whole_and_goes_on():
    pytest.importorskip("torch")
    pytest.importorskip("fbgemm_gpu")
    root = str(Path(shardc.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(KILLS), "--kills", "12", "--full", "6"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
