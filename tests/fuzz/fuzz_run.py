"""Runs a case of the fuzzer in this process, and says what is wrong with what became of it."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from unittest.mock import patch

from fuzz_cases import Case
from typer.main import get_command

import shardc.cli.run
import shardc.profiling
import shardc.sweep
import shardc.workers
from shardc import cli
from shardc.cli.commands import app_for
from shardc.diagnostics import CODES, DiagnosticError
from shardc.hardware import devices_of
from shardc.measure.campaign import missing_sets, read_campaign
from shardc.passes.lower import lower_cluster
from shardc.passes.place import EVALUATIONS
from shardc.passes.verify import verify, verify_alone
from shardc.plan import default_plan_path, is_as_written, parse_plan, read_plan
from shardc.spec import load_spec

SECONDS = 60
"""What a command may take."""

_CODES = re.compile(r"\b(SH\d{3})\b")
_EVALUATIONS = 200


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        code: the exit code; None when the command raised something.
        text: what it printed on stdout and stderr.
        wrong: what is wrong with that; empty if nothing is.
        emitted: whether it wrote a plan.
    """

    code: int | None
    text: str
    wrong: tuple[str, ...]
    emitted: bool = False


class _TooLong(BaseException):
    """No command catches this."""


@contextmanager
def quick_commands() -> Iterator[None]:
    """Let commands be built once, search little, stay in one process and measure nothing.

    Fuzzed is what they take and refuse.
    """
    app, evaluations = get_command(app_for([])), dict(EVALUATIONS)
    EVALUATIONS.update(dict.fromkeys(EVALUATIONS, _EVALUATIONS))
    try:
        with (
            patch.object(shardc.cli.run, "app_for", lambda arguments: app),
            patch.object(shardc.sweep, "cores", lambda: 1),
            patch.object(shardc.workers, "cores", lambda: 1),
            patch.object(shardc.profiling, "_measure", lambda folder, *_, sets, **__: missing_sets(folder, sets)),
            patch.object(shardc.profiling, "_fit", lambda folder, *_, **__: read_campaign(folder) and None),
        ):
            yield
    finally:
        EVALUATIONS.update(evaluations)


def run_case(case: Case, *, torchrec: bool = False) -> Outcome:
    """Run a case in a folder of its own.

    Args:
        case: the command and its files.
        torchrec: whether plans also go through TorchRec's loader.
    """
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(prefix="shardc-fuzz-", dir=shared))
    before = os.getcwd()
    try:
        for name, data in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        os.chdir(folder)
        code, text, failure = _run(case)
        wrong = [failure] if failure else [*_faults_of(case, code, text)]
        emitted = False
        if not wrong:
            emitted, faults = _faults_of_plans(case, code, torchrec)
            wrong += faults
        return Outcome(code, text, tuple(wrong), emitted)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _run(case: Case) -> tuple[int | None, str, str | None]:
    """Exit code, output, and what the command raised if it raised anything but its exit."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(case.stdin))
    printed = [io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in (out, err)]
    sys.stdout, sys.stderr = printed
    code: int | None = None
    failure = None

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise _TooLong

    usual = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        cli.main(case.arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except _TooLong:
        failure = f"took more than {SECONDS} s"
    except BaseException as error:
        failure = f"raised {type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)
        sys.stdin, sys.stdout, sys.stderr = streams
    text = b"".join(stream.getvalue() for stream in (out, err)).decode(errors="replace")
    for wrapper in printed:
        wrapper.close()
    return code, text, failure


def _faults_of(case: Case, code: int | None, text: str) -> Iterator[str]:
    found = set(_CODES.findall(text))
    if code not in (0, 1, 2, 130):
        yield f"exit code {code}"
    if "Traceback (most recent call last)" in text:
        yield "a traceback"
    if "SH901" in found and "rule" not in case.arguments:
        yield "an internal error"
    quiet_difference = "--exit-code" in case.arguments or case.arguments[:1] == ("sweep",)
    if code and not found and not quiet_difference:
        yield f"exit code {code}, and no diagnostic"
    if case.refused_with is not None and code and (other := found - case.refused_with - _WARNINGS):
        yield f"a valid spec was refused with {', '.join(sorted(other))}"


_WARNINGS = {code for code in CODES if code.startswith("SH5")}


def _faults_of_plans(case: Case, code: int | None, torchrec: bool) -> tuple[bool, list[str]]:
    """Whether a plan was written, and what is wrong with it; or with a plan that nothing was found wrong with."""
    path = Path(default_plan_path("model.toml"))
    given = case.files.get(str(path))
    faults: list[str] = []
    now = path.read_bytes() if path.is_file() else None
    emitted = now is not None and now != given and case.arguments[0] in ("compile", "check")
    checked = case.arguments[:2] == ("check", "model.toml") and code == 0
    if now is not None and (emitted or checked):
        try:
            plan, loaded = parse_plan(str(path), now.decode("utf-8-sig")), load_spec("model.toml")
            faults += [f"{d.code} {d.message}" for d in verify(plan, loaded, lower_cluster(loaded, devices_of(loaded)))]
            if emitted and not is_as_written(now.decode()):
                faults.append("the plan's digest is not its own")
        except DiagnosticError as error:
            faults.append(f"the plan cannot be read: {error}")
    if torchrec and now is not None and (emitted or given is not None):
        faults += _faults_in_torchrec(path, emitted)
    return emitted, faults


def _faults_in_torchrec(path: Path, emitted: bool) -> list[str]:
    """TorchRec's loader takes what shardc emits as it is, and of other plans none that is at fault."""
    from shardc.frameworks.torchrec import from_sharding_plan, load_plan

    try:
        loaded = load_plan(path)
        plan = read_plan(path)
    except DiagnosticError as error:
        return [f"TorchRec's loader: {error}"] if emitted else []
    except Exception as error:
        return [f"TorchRec's loader raised {type(error).__name__}: {error}"]
    if faults := verify_alone(plan):
        return [f"TorchRec's loader took a plan with {faults[0].code} {faults[0].message}"]
    if not any(plan.plan.values()):  # what TorchRec would train without any table, and what is refused on the way back
        return []
    again = from_sharding_plan(loaded)
    wanted = {
        module: {name: table.model_copy(update={"shape": None}) for name, table in tables.items()}
        for module, tables in plan.plan.items()
    }
    return [] if again == wanted else ["TorchRec's plan is another"]
