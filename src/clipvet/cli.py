"""The command line: one file of commands/ for each. Torch is imported inside them, so that --help answers at once."""

import importlib
import os
import re
import sys
import traceback
from contextlib import suppress

import typer

# in the order of --help
COMMANDS = ("demo", "train", "tune", "attack", "inspect", "calibrate", "evaluate", "filter", "detect", "clean")
COMMANDS += ("verify", "convert", "run", "report", "list")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Vet CLIP models and the web data behind them: inspect, attack, filter, clean, evaluate.\n\n"
    "DATA: shapes (embedded), shapes-shifted, foreign, a CSV/TSV/parquet of pictures and captions, tar shards "
    "('a/{000..999}.tar'), a folder of HF datasets. TASK: shapes, or a folder with one folder per class. MODEL: an "
    "open_clip name (ViT-B-32, shapes-vit), a directory of open_clip's or transformers' layout, a state dict of "
    "OpenAI's, local-dir:PATH, hf-hub:REPO.",
)

for _name in COMMANDS:
    app.command(name=_name)(importlib.import_module(f"clipvet.commands.{_name}").command)


def main() -> None:
    """Entry point: bad input ends in one sentence and exit code 2, what a method cannot work on in exit code 3.

    Code 1 is a verdict, so a crash ends in 2 as well, after its traceback (a killed loader process: after a sentence),
    and an interrupted run in 130.
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
        if isinstance(e.__context__, OSError):  # typer's answer to a closed pipe is 1
            sys.exit(2)
        raise
    except Exception as e:
        with suppress(OSError):
            if re.match(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(e)):
                print("clipvet: a process that reads pictures was killed; free memory, give it again", file=sys.stderr)
            else:
                traceback.print_exc()
        sys.exit(2)


def _join() -> None:
    """One of several processes that torchrun or `accelerate launch` has started: the first alone talks."""
    import atexit

    import torch.distributed as dist

    from clipvet import ranks

    ranks.start()
    atexit.register(dist.destroy_process_group)
    if not ranks.main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 for the rest of the process
