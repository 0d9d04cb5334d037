"""The command line. Each command is a file in commands/. They import torch when they run, so that --help is quick."""

import importlib
import os
import re
import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer

from clipvet.commands._options import with_bare
from clipvet.commands._shared import with_shared

# in the order of --help
COMMANDS = ("vet", "demo", "train", "tune", "attack", "inspect", "calibrate", "evaluate", "filter", "detect", "clean")
COMMANDS += ("verify", "convert", "run", "report", "leaderboard", "list", "explain", "recommend")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Vet CLIP models and the web data behind them: inspect, attack, filter, clean, evaluate.\n\n"
    "DATA: a CSV, TSV or parquet table of pictures and captions, tar shards ('a/{000..999}.tar'), a folder of HF "
    "datasets, or a built-in world (shapes, shapes-shifted, foreign). TASK: a folder with a folder for each class, or "
    "shapes. MODEL: a folder in open_clip's or transformers' layout, a state dict of OpenAI's, an open_clip name "
    "(ViT-B-32, shapes-vit), local-dir:PATH or hf-hub:REPO.",
)


def _version(asked: bool | None) -> None:
    if asked:
        from clipvet import __version__

        print(f"clipvet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = None,
) -> None:
    pass


for _name in COMMANDS:
    _command = importlib.import_module(f"clipvet.commands.{_name}").command
    app.command(name=_name)(with_shared(_name, with_bare(_command)))


def main() -> None:
    """Runs the command that the user typed, and turns errors into exit codes.

    2: bad input, after one sentence; a crash, after its traceback. 3: the method cannot work on this input. 130: the
    user interrupted it. Code 1 is left to verdicts, such as "backdoored".
    """
    from clipvet.errors import Unsupported, UserError

    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _join()
        app()
    except UserError as e:
        with suppress(OSError):  # nobody may be reading any more
            print(f"clipvet: {e}", file=sys.stderr)
        sys.exit(3 if isinstance(e, Unsupported) else 2)
    except SystemExit as e:
        if type(e.__context__).__name__ == "Abort":
            sys.exit(130)
        if isinstance(e.__context__, OSError):  # typer exits with 1 if the output's pipe is closed
            sys.exit(2)
        raise
    except Exception as e:
        with suppress(OSError):
            if re.match(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(e)):
                print(
                    "clipvet: a process that reads pictures was killed; free memory and run it again", file=sys.stderr
                )
            else:
                traceback.print_exc()
        sys.exit(2)


def _join() -> None:
    """Join the other processes that torchrun or `accelerate launch` has started. Only the first one prints."""
    import atexit

    import torch.distributed as dist

    from clipvet import ranks

    ranks.start()
    atexit.register(dist.destroy_process_group)
    if not ranks.main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 for the rest of the process
