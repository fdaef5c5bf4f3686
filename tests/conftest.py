"""What tests share. Its being here puts this folder on the path, so that all tests can import `brute_force`."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest
from hypothesis import settings

from shardc import cli

# What a shell runs in the background ignores Ctrl-C, and so does what it starts: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine: CI fails for what changed. `--hypothesis-profile default` looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@dataclass
class Done:
    """What became of a command."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


@pytest.fixture
def run_command(capfd):
    """Run a command of shardc in this process."""

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Done(stop.value.code or 0, out, err)

    return run
