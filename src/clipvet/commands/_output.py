"""The output folder of a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from clipvet.jobs.leaving import say


@contextmanager
def output(out: Path, config: dict[str, Any]) -> Iterator[Path]:
    """`io.output`; a run that is already complete ends the command here, with a sentence and exit code 0."""
    from clipvet import io

    try:
        with io.output(out, config) as work:
            yield work
    except io.AlreadyDone as e:
        say(f"{e}: nothing to do")
        raise typer.Exit(0) from e
