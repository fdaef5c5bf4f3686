"""Asking git for files of revisions, as much of them as there may be."""

from __future__ import annotations

import subprocess
import tempfile
from typing import NamedTuple

from shardc.files import MAX_BYTES

_SAID_BYTES = 10_000


class Answer(NamedTuple):
    """What git answered.

    Attributes:
        failed: whether it says that it cannot.
        data: its stdout, at most one byte more than `shardc.files.MAX_BYTES`: it is ended there.
        said: the beginning of its stderr.
    """

    failed: bool
    data: bytes
    said: str


def ask_git(*arguments: str) -> Answer:
    """Run git with some arguments.

    Raises:
        OSError: when it cannot be run.
    """
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            ["git", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as git:
            assert git.stdout is not None
            data = git.stdout.read(MAX_BYTES + 1)
            if too_much := len(data) > MAX_BYTES:
                git.kill()
        said.seek(0)
        text = said.read(_SAID_BYTES).decode(errors="replace")
    return Answer(git.returncode != 0 and not too_much, data, text)
