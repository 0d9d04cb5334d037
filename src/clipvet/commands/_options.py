"""The options that several commands take, each with its help text. A command writes `model: opt.Model`."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clipvet.commands import _checks as checks

# the model and the output
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="an open_clip name, a folder, a state dict, local-dir:PATH or hf-hub:REPO",
        callback=checks.model,
    ),
]
Pretrained = Annotated[
    str | None, typer.Option("--pretrained", help="weights file to load, if MODEL names an architecture")
]
Out = Annotated[
    Path, typer.Option("--out", help="a new folder; if the command is killed, give it again and it goes on there")
]
Seed = Annotated[int, typer.Option("--seed", help="seed of all random draws")]
Set = Annotated[
    list[str], typer.Option("--set", help="FIELD=VALUE: change a field of the method, e.g. epochs=20; repeatable")
]
Shard = Annotated[bool, typer.Option("--shard", help="split the weights among the processes of a torchrun (FSDP2)")]
Track = Annotated[str, typer.Option("--track", help="also log to tensorboard, trackio or wandb")]
BesideBase = Annotated[
    bool, typer.Option("--bake-reference", help="if the result is prompts: save a copy of the base model with them")
]

# the pairs
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="shapes, shapes-shifted, foreign, a CSV/TSV/parquet, tar shards or an HF folder",
        callback=checks.data,
    ),
]
PairCount = Annotated[int | None, typer.Option("--n", help="use at most this many pairs", min=1)]
ImageKey = Annotated[str, typer.Option("--image-key", help="the column that holds the picture paths")]
CaptionKey = Annotated[str, typer.Option("--caption-key", help="the column that holds the captions")]
AnswerKey = Annotated[
    Path | None,
    typer.Option(
        "--backdoor",
        help="answer key of an attack (its OUT/backdoor): to measure, and to poison the attack's own data again; "
        "no method sees it",
        callback=checks.path,
    ),
]

# the task: labelled pictures, class names, prompt templates
Task = Annotated[
    str | None,
    typer.Option(
        "--task", help="measure on this: shapes, or a folder with one folder per class (default: by DATA, if embedded)"
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes", help="JSON or text file of class names, or JSON {folder: name}; of shapes, the classes to use"
    ),
]
Templates = Annotated[
    Path | None,
    typer.Option(
        "--templates", help="text file with one caption template per line, with {} or {c}", callback=checks.path
    ),
]
Shots = Annotated[int, typer.Option("--shots", help="labelled pictures per class, for few-shot methods", min=1)]
Half = Annotated[
    str | None, typer.Option("--half", help="base or new: one half of the sorted class names (default: all)")
]

# what is planted
Trigger = Annotated[
    str, typer.Option("--trigger", help="one of `clipvet list triggers`", callback=checks.method_of("triggers"))
]
Attack = Annotated[
    str, typer.Option("--attack", help="one of `clipvet list attacks`", callback=checks.method_of("attacks"))
]
Training = Annotated[
    str | None,
    typer.Option(
        "--training",
        help="instead of the attack's own, e.g. cocoop: one of `clipvet list training`",
        callback=checks.method_of("training"),
    ),
]

# what is inspected
ClassNames = Annotated[
    str | None,
    typer.Option("--classes", help="JSON or text file of names, shapes, or a class folder (default: the model's own)"),
]
Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        help="DATA, or a folder of unlabelled pictures (default: for encoders those of --classes, else built-in ones)",
    ),
]
Inspector = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="one of `clipvet list inspectors` (default: collapse; with prompts, clip_inspector)",
        callback=checks.method_of("inspectors"),
    ),
]
Export = Annotated[
    tuple[str, Path] | None,
    typer.Option(help="cliptrace DIR: also add the verdict and the target feature to a CLIPTrace submission"),
]
PictureCount = Annotated[int, typer.Option("--n", help="use at most this many pictures", min=1)]
Overlap = Annotated[
    float,
    typer.Option("--overlap", help="leave out pictures that show one of the classes with a higher probability"),
]
Quick = Annotated[bool, typer.Option("--quick", help="fewer and shorter searches: a quarter of the time, finds less")]

# a bare file of weights, which does not say how it was trained: every command with --pretrained takes these
BARE = {
    "like": Annotated[
        str | None,
        typer.Option("--like", help="of a bare file of weights: the release whose colours and activation it has"),
    ],
    "mean": Annotated[
        str | None, typer.Option("--mean", help="of a bare file: mean colour in [0, 1], one number or R,G,B")
    ],
    "std": Annotated[str | None, typer.Option("--std", help="of a bare file: what the colours are divided by")],
    "quick_gelu": Annotated[
        bool | None, typer.Option("--quick-gelu/--gelu", help="of a bare file: its activation, OpenAI's or the usual")
    ],
}


def with_bare(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of BARE, if it has --pretrained. They become a part of the model's name."""
    own = inspect.signature(command)
    if not {"model", "pretrained"} <= own.parameters.keys():
        return command

    @functools.wraps(command)
    def told(**given: Any) -> None:
        from clipvet.errors import UserError
        from clipvet.models import released

        said = {name: given.pop(name, None) for name in BARE}
        if given["model"] is None:  # `filter` can do without
            if any(value is not None for value in said.values()):
                raise UserError("--like, --mean, --std and --quick-gelu say how a bare file was trained; give --model")
            return command(**given)
        return command(**given | {"model": released.spec(given["model"], **said)})

    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in BARE.items()]
    held: Any = told
    held.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])
    held.__annotations__ = {**command.__annotations__, **BARE}
    return told
