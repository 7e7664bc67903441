"""`python -m streamdit_cli` and the `streamdit` command."""

from __future__ import annotations

import os
import sys

__all__ = ["run"]

# Of `app.ExitCode`, which is not imported yet when they are needed.
_INTERRUPTED = 130
_PIPE_CLOSED = 141


def run() -> None:
    """Run the command line of this process and exit with its code.

    Idle OpenMP threads sleep instead of spinning: the encoder and the other stages of a stream
    need the cores between two parallel regions. It must be set before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from streamdit_cli.app import main

        code = main()
    except KeyboardInterrupt:  # before `main` was reached
        code = _INTERRUPTED
    if code == _PIPE_CLOSED and sys.stdout is not None:
        # What is left in the buffer has no reader; flushing it at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    run()
