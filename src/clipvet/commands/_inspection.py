"""What `inspect` and `calibrate` share: the model, the classes, the pictures and the method, from words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clipvet.commands._leaving import say
from clipvet.commands._opening import open_method

if TYPE_CHECKING:
    from clipvet.types import Clip, Finding, Pairs

ClassesOption = Annotated[
    str | None,
    typer.Option("--classes", help="JSON or text file of names, shapes, or a class folder (default: the model's own)"),
]
Images = Annotated[
    str | None,
    typer.Option("--images", help="DATA, or a folder of unlabelled pictures (default: an embedded pool)"),
]
Method = Annotated[str, typer.Option(help="see `clipvet list inspectors`")]
Count = Annotated[int, typer.Option("--n", help="take at most so many pictures", min=1)]
Overlap = Annotated[
    float, typer.Option(help="drop given pictures that plain prompts call one of the classes with more than this")
]
SMALL = 64  # pixels: below, the embedded world's settings apply


class Asked(NamedTuple):
    """An inspection, ready to run."""

    clip: "Clip"
    how: Any
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    pictures: "Pairs"
    pool: str  # what they are, whichever the model drops
    reference: str  # hash of the model that it is compared with, if one is named

    @property
    def told(self) -> dict[str, Any]:
        """What must be the same for scores to be compared."""
        told = {"method": repr(self.how), "classes": len(self.classes), "templates": self.templates}
        return {**told, "pictures": self.pool, "reference": self.reference}

    @property
    def judged(self) -> str:
        """What of the model the score is about."""
        from clipvet.results import weights_hash
        from clipvet.scan import verdicts
        from clipvet.scan.heads import has_prompts

        named = getattr(self.how, "reference", "none")
        base = getattr(self.clip, "base", None)
        if has_prompts(self.clip) and named != "none":
            own = named in ("auto", "zeroshot") or (base is not None and self.reference == weights_hash(base))
            return verdicts.PROMPTS if own else verdicts.WHOLE
        return getattr(self.how, "judges", verdicts.WHOLE)

    def inspect(self, seed: int) -> "Finding":
        from clipvet.rng import Rng

        return self.how.inspect(self.clip, self.pictures, self.classes, self.templates, Rng(seed).fork("inspect"))


def load(model: str, pretrained: str | None, seed: int) -> "Clip":
    """The model. Raises UserError where it cannot be read, or is a name without weights."""
    from clipvet.models import checkpoints
    from clipvet.ranks import device
    from clipvet.rng import Rng
    from clipvet.scan.heads import check_weights

    clip = checkpoints.load(model, pretrained, device=device(), rng=Rng(seed).fork("init"))
    check_weights(model, pretrained)  # after the load, which makes our own architectures known
    return clip


def ask(
    clip: "Clip",
    method: str,
    classes: str | None,
    templates: Path | None,
    images: str | None,
    settings: list[str],
    n: int,
    overlap: float,
    seed: int,
) -> Asked:
    """Raises UserError for words that name nothing."""
    from dataclasses import replace

    from clipvet.models import checkpoints
    from clipvet.results import weights_hash
    from clipvet.scan.heads import check_classes, has_prompts

    small = clip.geometry.size <= SMALL
    how = open_method("inspectors", method, "shapes" if small else "", settings)
    if getattr(how, "reference", "") == "auto" and not has_prompts(clip):
        how = replace(how, reference="none")  # said, so that scores of the two kinds of models are never compared
    names, prompts = classes_of(clip, classes, templates)
    if classes is None:
        say(f"the {len(names)} classes are the model's own; a target that it does not list is not looked for")
    check_classes(names, 3 if getattr(how, "scaled", True) else 2)
    if not images and not small:
        say("no --images: the embedded pool (gratings, noise, crops of two photographs) stands in for photographs")
    pictures = pictures_of(images, n, clip.geometry.size, seed)
    told = f"{pictures.name} {pictures.fingerprint}, at most {n}, overlap {overlap:g}" if images else pictures.name
    if images:
        pictures = _apart(clip, pictures, names, prompts, overlap)
    named, reference = getattr(how, "reference", ""), ""
    if named not in ("", "auto", "zeroshot", "none"):
        reference = weights_hash(checkpoints.load(named))
    return Asked(clip, how, names, prompts, pictures, told, reference)


def classes_of(clip: "Clip", spec: str | None, templates: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from clipvet.data.folders import read_classes, read_templates
    from clipvet.data.sources import Test
    from clipvet.errors import UserError

    own = tuple(getattr(clip, "classes", ()))
    if spec is None and not own:
        raise UserError("this model does not say which classes it knows; give --classes, a file with one name a line")
    if spec is None or Path(spec).is_file():
        return own if spec is None else read_classes(Path(spec)), read_templates(templates)
    task = Test(spec, n=1, size=clip.geometry.size).task()
    return task.classes, read_templates(templates) if templates else task.templates


def pictures_of(spec: str | None, n: int, size: int, seed: int) -> "Pairs":
    from clipvet.data.folders import has_pictures, open_folder
    from clipvet.data.sources import WORLDS, Data
    from clipvet.data.worlds.pool import pool_pairs
    from clipvet.rng import Rng

    if spec is None:
        return pool_pairs(n, size, seed)
    if Path(spec).is_dir() and has_pictures(Path(spec)):
        found = open_folder(Path(spec))
    else:
        found = Data(spec, n if spec in WORLDS else None, "validation", size).pairs(seed)
    chosen = Rng(seed).fork("pictures").numpy().permutation(len(found))[:n]
    return found.take(chosen) if n < len(found) else found


def _apart(clip: "Clip", pictures: "Pairs", classes: Any, templates: Any, overlap: float) -> "Pairs":
    """Without the pictures that hand-written prompts find to show one of the classes."""
    from clipvet.engine.embed import device_of, plain_logits, see

    seen = see(clip, pictures)
    sure = plain_logits(clip, classes, templates)(seen.z.to(device_of(clip))).softmax(1).amax(1).cpu().numpy()
    apart = seen.kept[~(sure > overlap)]  # what is not finite stays, for the method to tell
    if len(apart) < len(seen.kept):
        say(
            f"{len(seen.kept) - len(apart)} of {len(seen.kept)} pictures of {pictures.name} seem to show one of the "
            f"classes (zero-shot probability above {overlap:g}) and are left out"
        )
    return pictures.take(apart)
