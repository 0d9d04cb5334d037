"""clipvet convert: the same model in another checkpoint layout."""

from pathlib import Path
from typing import Annotated

import typer

from clipvet.commands._shared import Pretrained, output, say


def command(
    model: Annotated[str, typer.Argument(help="as --model: a directory, a file of OpenAI's layout, an open_clip name")],
    out: Annotated[Path, typer.Argument(help="output directory; must not hold another run")],
    layout: Annotated[str, typer.Option(help="open_clip, transformers or openai")],
    pretrained: Pretrained = None,
) -> None:
    """Write a checkpoint in another layout, read it back and compare: features must agree to 1e-4."""
    from clipvet import models, results

    with output(out, {"command": "convert", "model": model, "pretrained": pretrained, "layout": layout}) as work:
        clip = models.load(model, pretrained)
        card = {"role": "converted", "from": getattr(clip, "layout", ""), "to": layout}
        card |= {"parent": results.weights_hash(clip), "versions": results.versions()}
        done = models.convert(clip, layout, work, card)
    say(f"wrote {out}: {layout}, features within {done.difference:.1e} of {model}'s")
