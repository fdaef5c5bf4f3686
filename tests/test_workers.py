from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.workers import as_done

FOLDERS = Path(__file__).parent, Path(__file__).parents[1]
IN_A_STRANGERS_FOLDER = """
import sys
from shardc.workers import as_done
from test_workers import square
print([result for _, result in sorted(as_done(square, range(3), 2, sys.argv[1]))])
"""
METHODS = pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])


def length(text: bytes, secret: int = 0) -> tuple[int, int]:
    return len(text) + secret, os.getpid()


def square(number: int) -> int:
    return number**2


def refuse(number: int) -> int:
    if number == 3:
        raise DiagnosticError(Diagnostic("SH101", "three is too much"), exit_code=2)
    return number


def end(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def linger(number: int) -> int:
    time.sleep(0 if number == 0 else 3600)
    return os.getpid()


@METHODS
def test_everything_is_done_once_whatever_its_size(method):
    texts = [bytes(number * 100_000) for number in range(9)]
    done = list(as_done(partial(length, secret=1), texts, 3, method))
    assert sorted((number, size) for number, (size, _) in done) == [(n, n * 100_000 + 1) for n in range(9)]
    assert os.getpid() not in {process for _, (_, process) in done}


def test_nothing_to_do():
    assert list(as_done(refuse, [], 3, "fork")) == []


@METHODS
def test_what_goes_wrong_with_one_is_raised(method):
    with pytest.raises(DiagnosticError, match="three is too much"):
        list(as_done(refuse, range(9), 2, method))


def test_a_process_that_is_killed_is_told():
    with pytest.raises(RuntimeError, match="killed"):
        list(as_done(end, [1, 2], 2, "fork"))


@METHODS
def test_leaving_early_ends_what_is_being_done(method):
    results = as_done(linger, [0, bytes(1_000_000), bytes(1_000_000)], 2, method)
    _, process = next(results)
    results.close()
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        try:  # our own child stays a zombie until it is waited for
            if os.waitpid(process, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            pass
        time.sleep(0.1)
    pytest.fail("the process goes on")


@METHODS
def test_modules_of_the_working_folder_are_not_imported(tmp_path, monkeypatch, method):
    done = subprocess.run(
        [sys.executable, "-P", "-c", IN_A_STRANGERS_FOLDER, method],
        cwd=strangers(tmp_path),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in FOLDERS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 4]\n", "")


def strangers(folder: Path) -> Path:
    """A folder with modules that have names of the standard library's."""
    for name in ("multiprocessing", "struct", "pickle", "signal"):
        (folder / f"{name}.py").write_text("raise SystemExit('executed')")
    return folder
