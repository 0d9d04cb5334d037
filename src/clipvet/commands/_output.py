"""The output folder of a command."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from clipvet.jobs.leaving import say
from clipvet.jobs.working import UNDECIDED


@contextmanager
def output(out: Path, config: dict[str, Any], fault: Callable[[], str] = lambda: "") -> Iterator[Path]:
    """`io.output`; a run that is already complete ends the command here, with a sentence and exit code 0.

    fault: what makes the finished run's result not to be trusted, if anything does: it is said again, with code 4.
    """
    from clipvet import io

    try:
        with io.output(out, config) as work:
            yield work
    except io.AlreadyDone as e:
        say(f"{e}: nothing to do")
        leave_if(fault())
        raise typer.Exit(0) from e


def leave_if(fault: str) -> None:
    """Says why a result is not to be trusted, if there is a reason, and ends the command with exit code 4."""
    if fault:
        say(fault)
        raise typer.Exit(UNDECIDED)
