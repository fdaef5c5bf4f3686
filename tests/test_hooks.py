"""The hooks that pre-commit runs, by pre-commit itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/dlrm-small"


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """A repository with a spec and its plan; what pre-commit says of what is staged."""
    pytest.importorskip("pre_commit")
    yaml = pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / ".cache"))
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    for hook in hooks:
        hook["entry"] = hook["entry"].replace("shardc", f"{sys.executable} -m shardc", 1)
        hook["language"] = "system"
    Path(".pre-commit-config.yaml").write_text(json.dumps({"repos": [{"repo": "local", "hooks": hooks}]}))
    Path("models").mkdir()
    Path(".gitignore").write_text(".cache\n")
    for suffix in (".toml", ".plan.json"):
        Path(f"models/m{suffix}").write_bytes(EXAMPLE.with_suffix(suffix).read_bytes())
    name = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for arguments in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "a plan"]):
        subprocess.run(["git", *arguments], check=True)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pre_commit", "run"],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )

    return run


def test_the_deletion_of_a_plan_is_refused(commit):
    assert commit().returncode == 0
    subprocess.run(["git", "rm", "-q", "models/m.plan.json"], check=True)
    done = commit()
    assert done.returncode == 1
    assert "SH301 models/m.toml has no plan" in done.stdout
