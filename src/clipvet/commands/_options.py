"""The options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", help="open_clip name, directory, local-dir:PATH or hf-hub:REPO")]
DataOption = Annotated[
    str, typer.Option("--data", help="shapes, shapes-shifted, foreign, a CSV/TSV/parquet, tar shards or an HF folder")
]
Out = Annotated[Path, typer.Option("--out", help="output directory; must not hold another run")]
Set = Annotated[list[str], typer.Option("--set", help="field=value of the method, e.g. epochs=20; repeatable")]
Pretrained = Annotated[str | None, typer.Option(help="weights file for an open_clip name")]
Seed = Annotated[int, typer.Option(help="every draw follows from it")]
AnswerKey = Annotated[
    Path | None, typer.Option(help="answer key, for the measures alone; the data of its attack are poisoned as it says")
]
Count = Annotated[int | None, typer.Option("--n", help="take only so many pairs")]
ImageKey = Annotated[str, typer.Option(help="the table's column of picture paths")]
CaptionKey = Annotated[str, typer.Option(help="the table's column of captions")]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="shapes, or a class folder (default: shapes for shapes)")
]
Classes = Annotated[
    Path | None, typer.Option(help="JSON: list of class names, or {folder: name}; of shapes: those to take")
]
ShotsOption = Annotated[
    int, typer.Option("--shots", help="labelled pictures of each class, for few-shot methods", min=1)
]
HalfOption = Annotated[
    str | None, typer.Option("--half", help="base or new: half of the sorted classes (default: all)")
]
Bake = Annotated[bool, typer.Option("--bake-reference", help="where prompts come back: put the base model beside them")]
Shard = Annotated[bool, typer.Option("--shard", help="of several processes each keeps a part of the weights (FSDP2)")]
Track = Annotated[str, typer.Option("--track", help="also log to tensorboard, trackio or wandb")]
Templates = Annotated[Path | None, typer.Option(help="text file, one template a line, with {} or {c}")]
