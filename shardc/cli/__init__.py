"""The command line: data on stdout, everything else on stderr.

Exit codes: 0 fine, 1 findings (an invalid spec, an infeasible model, a failed check), 2 could not run, as with a wrong
option, 130 interrupted.

One module a command (or a group of commands); `commands` puts them together, `console` has what they share, `run` turns
whatever goes wrong into a diagnostic. Heavy modules are imported inside the commands: `shardc --help` and `shardc
validate` answer at once.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    Args:
        arguments: of the command line; None for the process's own.
    """
    # Short commands mostly import. That makes no garbage to look for, and needs no search of all installed packages for
    # plugins that watch pydantic.
    gc.set_threshold(100_000)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from shardc.cli.run import run  # here, so that an interrupt of the import is told as a later one is

        code = run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
