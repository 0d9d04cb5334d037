"""clipvet convert: the same model in another checkpoint layout."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands import _options as opt
from clipvet.commands._output import output
from clipvet.commands._shared import rehearse
from clipvet.jobs.leaving import say
from clipvet.jobs.planning import Step

ROUNDED = ("float16", "bfloat16")
PLACES = {"end": "after the context", "middle": "in the middle of the context", "front": "before the context"}


def command(
    model: Annotated[str, typer.Argument(help="the model, as for --model of the other commands")],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    layout: Annotated[
        str | None, typer.Option(help="open_clip, transformers or openai; coop, for learned prompts")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16 or bfloat16: round the weights, for a file of half the size")
    ] = None,
    pretrained: opt.Pretrained = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="prompt_learner file of CoOp or CoCoOp, learned on this model", exists=True, dir_okay=False),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(help="where CoOp's prompts have the class name (CLASS_TOKEN_POSITION): end, middle or front"),
    ] = None,
) -> None:
    """Write a checkpoint in another layout, read it back and compare: features must agree to 1e-4.

    With --dtype the weights are rounded, and features may differ by 1e-2 (float16) or 5e-2 (bfloat16).

    --prompts turns prompts that CoOp's or CoCoOp's code has learned into a folder for every other command; --layout
    coop goes the other way.
    """
    import torch

    from clipvet import io, results
    from clipvet.errors import UserError
    from clipvet.models import checkpoints, class_prompts, coop_files

    if (layout is None) == (prompts is None):
        raise UserError(
            "give either --layout, to write the model in another layout, or --prompts, to add prompts to it"
        )
    if position is not None and (not prompts or position not in class_prompts.POSITIONS):
        raise UserError(f"--position {position} goes with --prompts, and is {', '.join(class_prompts.POSITIONS)}")
    if dtype not in ROUNDED and dtype is not None:
        raise UserError(f"--dtype {dtype} is not known; give {' or '.join(ROUNDED)}")
    if dtype and (prompts or layout == "coop"):
        raise UserError("--dtype rounds a whole model; give it with --layout open_clip")
    config = {"command": "convert", "model": model, "pretrained": pretrained, "layout": layout, "dtype": dtype}
    clip, card = checkpoints.load(model, pretrained), {"role": "converted", "versions": results.versions()}
    config |= {"weights": results.weights_hash(clip), "prompts": prompts and f"{prompts} {io.sha256(prompts)}"}
    config |= {"position": position} if position else {}
    rehearse(clip, lambda probe: [Step(f"write {model} in another layout into {out}, and compare", 16 * probe.picture)])
    with output(out, config) as work:
        if prompts:
            there, where = coop_files.position_of(prompts)
            tuned = coop_files.read(prompts, clip, position or there or "end")
            checkpoints.save(clip, work / "base", {"role": "base"})
            class_prompts.save(tuned, work, {**card, "from": str(prompts), "file_sha256": io.sha256(prompts)})
            told = (
                f"context of {len(tuned.context)} tokens, for {len(tuned.classes) or 'unnamed'} classes, and its base; "
                f"the class name is taken to stand {PLACES[tuned.position]} (CLASS_TOKEN_POSITION {tuned.position}), "
                f"{_source(position, there, where)}"
            )
        elif layout == "coop":
            told = str(coop_files.write(clip, work).relative_to(work))
            told += f" (CLASS_TOKEN_POSITION {getattr(clip, 'position', 'end')}; the file does not say so)"
        else:
            card |= {"from": getattr(clip, "layout", ""), "to": layout, "parent": results.weights_hash(clip)}
            done = checkpoints.convert(clip, str(layout), work, card, getattr(torch, dtype) if dtype else None)
            told = f"{layout}, features within {done.difference:.1e} of {model}'s"
    say(f"wrote {out}: {told}")


def _source(given: str | None, there: str, where: str) -> str:
    """Who says where the class name stands. there, where: what `coop_files.position_of` found."""
    if given:
        return f"as you say, while {where} says {there}" if there not in ("", given) else "as you say"
    return f"as {where} says" if there else "which the file does not say: see --position"
