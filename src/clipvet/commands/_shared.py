"""The options that all commands have, added in one place: --quiet, --json, --device, --workers and --dry-run.

A command knows nothing of them. It says things with `say` and `show`, notes further facts for --json with `record`, and
calls `rehearse` once it has opened everything and before it begins.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clipvet.jobs.planning import Probe, Step
    from clipvet.types import Clip

TALK = ("list", "explain", "recommend", "report", "leaderboard")  # commands that open no model
PLANNED = (
    "vet", "train", "tune", "attack", "inspect", "calibrate", "evaluate", "filter", "detect", "clean", "verify",
    "convert", "run", "demo",
)  # fmt: skip
OPTIONS: dict[str, Any] = {
    "hush": Annotated[bool, typer.Option("--quiet", help="no progress; only the answer")],
    "as_json": Annotated[bool, typer.Option("--json", help="print one JSON object instead of sentences and tables")],
    "device": Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    ],
    "workers": Annotated[
        int | None, typer.Option("--workers", help="processes that read pictures (default: by their number)", min=0)
    ],
    "dry": Annotated[bool, typer.Option("--dry-run", help="say what would be done, its time and memory; do nothing")],
}


def with_shared(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """The command of this name with the options above, as far as they make sense for it."""
    own = inspect.signature(command)
    left_out = {*(() if name not in TALK else ("device", "workers")), *(() if name in PLANNED else ("dry",))}
    added = {n: kind for n, kind in OPTIONS.items() if n not in left_out}

    @functools.wraps(command)
    def told(**given: Any) -> None:
        from clipvet.jobs.leaving import quiet, rehearsal

        said = {n: given.pop(n, None) for n in OPTIONS}
        with _environment(said["device"], said["workers"]), quiet(bool(said["hush"])), rehearsal(bool(said["dry"])):
            (_as_json if said["as_json"] else _plainly)(name, command, given)

    made = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None if n in ("device", "workers") else False,
                          annotation=kind)
        for n, kind in added.items()
    ]  # fmt: skip
    held: Any = told
    held.__signature__ = own.replace(parameters=[*own.parameters.values(), *made])
    held.__annotations__ = {**command.__annotations__, **added}
    return told


def _plainly(name: str, command: Callable[..., None], given: dict[str, Any]) -> None:
    command(**given)


def _as_json(name: str, command: Callable[..., None], given: dict[str, Any]) -> None:
    """Runs the command and prints one object: what it noted, said and printed, and its exit code."""
    import io
    import json
    from contextlib import redirect_stdout

    from clipvet.jobs.leaving import recording

    code, printed = 0, io.StringIO()
    with recording() as held, redirect_stdout(printed):
        try:
            command(**given)
        except typer.Exit as e:
            code = e.exit_code
    whole = held.pop("whole", None)
    lines = [line for line in printed.getvalue().splitlines() if line.strip()]
    print(json.dumps(whole or {"command": name, "exit_code": code, **held, "printed": lines}, default=str))
    if code:
        raise typer.Exit(code)


@contextmanager
def _environment(device: str | None, workers: int | None) -> Iterator[None]:
    """The choice of device and processes, for this process and those that it starts."""
    wanted = {"ACCELERATE_TORCH_DEVICE": _checked(device), "CLIPVET_WORKERS": None if workers is None else str(workers)}
    before = {name: os.environ.get(name) for name, value in wanted.items() if value is not None}
    os.environ.update({name: value for name, value in wanted.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def _checked(device: str | None) -> str | None:
    """Refuses a device that is not there."""
    if device is None:
        return None
    import torch

    from clipvet.errors import UserError

    try:
        found = torch.device(device)
    except RuntimeError as e:
        raise UserError(f"--device {device} is no device; give cpu, cuda, cuda:1 or mps") from e
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (found.index or 0) >= there.get(found.type, 0):
        raise UserError(f"--device {device} is not on this machine; leave it out, or give cpu")
    return device


def rehearse(clip: "Clip", steps: "Callable[[Probe], list[Step]]") -> None:
    """Under --dry-run says what would be done, with time and memory, and ends the command with exit code 0."""
    from clipvet.jobs.leaving import rehearsed

    if rehearsed():
        from clipvet.jobs.planning import Probe

        tell_plan(steps(Probe(clip)), clip)


def tell_plan(steps: "list[Step]", clip: "Clip") -> None:
    """Prints the plan and ends the command."""
    from clipvet.errors import shown
    from clipvet.jobs.leaving import record
    from clipvet.jobs.planning import in_lines, memory

    trains = any(s.trains for s in steps)
    record(plan=[s._asdict() for s in steps], memory_gib=memory(clip, trains))
    for line in in_lines(steps, clip):
        print(shown(line))
    raise typer.Exit(0)
