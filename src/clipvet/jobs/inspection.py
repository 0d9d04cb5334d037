"""What `inspect`, `calibrate` and `detect` share: the model, the classes, the pictures and the method, from words."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipvet.jobs.leaving import say
from clipvet.jobs.opening import open_method, open_model

if TYPE_CHECKING:
    from clipvet.engine.embed import Seen
    from clipvet.types import Clip, Finding, Pairs

PHOTO = "a photo of a {}."
IMAGENET = "imagenet"  # as class names: those of ImageNet's 1,000 classes, under one template
CAPTIONS = 2000  # of an embedded world, to name a target by
SURE = 256  # pictures, by which two models are compared in how sure they are
SMALL = 64  # pixels: at most so many, and the settings for the embedded world apply


class Asked(NamedTuple):
    """An inspection, ready to run."""

    clip: "Clip"
    how: Any
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    pictures: "Pairs"
    pool: str  # what the pictures are, before those that show a class were left out
    reference: str  # hash of the model that this one is compared with, if one is named
    seed: int

    @property
    def told(self) -> dict[str, Any]:
        """What must be the same for two scores to be compared, beside the seed."""
        told = {"method": repr(self.how), "classes": len(self.classes), "templates": self.templates}
        return {**told, "pictures": self.pool, "reference": self.reference}

    @property
    def judged(self) -> str:
        """The part of the model that the score is about."""
        from clipvet.results import weights_hash
        from clipvet.scan import verdicts
        from clipvet.scan.heads import has_prompts

        named = getattr(self.how, "reference", "none")
        base = getattr(self.clip, "base", None)
        if has_prompts(self.clip) and named != "none":
            own = named in ("auto", "zeroshot") or (base is not None and self.reference == weights_hash(base))
            return verdicts.PROMPTS if own else verdicts.WHOLE
        return getattr(self.how, "judges", verdicts.WHOLE)

    def sureness(self) -> float | None:
        """How sure the model is of its answers on the pictures: the mean zero-shot probability of the likeliest class.

        A model that has learnt little is unsure. None where no classes are named.
        """
        from clipvet.engine.embed import device_of, plain_logits, see

        if len(self.classes) < 2:
            return None
        z = see(self.clip, self.pictures.take(slice(SURE))).z.to(device_of(self.clip))
        return float(plain_logits(self.clip, self.classes, self.templates)(z).softmax(1).amax(1).mean())

    def inspect(self) -> "Finding":
        from clipvet.rng import Rng

        rng = Rng(self.seed).fork("inspect")
        return self.how.inspect(self.clip, self.pictures, self.classes, self.templates, rng)


def open_suspect(model: str, pretrained: str | None, seed: int) -> "Clip":
    """The model to inspect. Raises UserError where it cannot be read, or has no weights of its own."""
    from clipvet.scan.heads import check_weights

    clip = open_model(model, pretrained, seed)
    check_weights(model, pretrained)  # after it was opened, which makes our own architectures known
    return clip


def open_scan(family: str, method: str, clip: "Clip", settings: list[str]) -> Any:
    """An inspector or a detector, with the settings that suit the size of this model's pictures."""
    return open_method(family, method, "shapes" if clip.geometry.size <= SMALL else "", settings)


def ask(
    clip: "Clip",
    method: str | None,
    classes: str | None,
    templates: Path | None,
    images: str | None,
    settings: list[str],
    n: int,
    overlap: float,
    seed: int,
    quick: bool = False,
) -> Asked:
    """The inspection that the options ask for. Raises UserError for words that name nothing.

    method: None chooses by what the model is: its prompts are judged if it has any, else its picture tower. quick: the
    method's cheaper settings.
    """
    from dataclasses import replace

    from clipvet.models import checkpoints
    from clipvet.results import weights_hash
    from clipvet.scan.heads import has_prompts

    method = method or ("clip_inspector" if has_prompts(clip) else "collapse")
    how = open_scan("inspectors", method, clip, [*_quicker(method), *settings] if quick else settings)
    if getattr(how, "reference", "") == "auto" and not has_prompts(clip):
        how = replace(how, reference="none")  # spelled out, so that scores of the two kinds of models are not compared
    names, prompts = _names(clip, how, classes, templates)
    alike = getattr(how, "sees", "outside") == "task"  # pictures such as the model is used for
    if alike and not images and classes not in (None, IMAGENET) and not Path(classes).is_file():
        pictures = _of_task(classes, n, clip.geometry.size, seed)
        name = f"{pictures.name} {pictures.fingerprint}" if Path(classes).exists() else classes
        return Asked(clip, how, names, prompts, pictures, f"{name}, its test pictures, at most {n}", "", seed)
    if not images and clip.geometry.size > SMALL:
        say("no --images: a built-in pool (gratings, noise, crops of two photographs) stands in for photographs")
    pictures = pictures_of(images, n, clip.geometry.size, seed)
    pool = f"{pictures.name} {pictures.fingerprint}, at most {n}, overlap {overlap:g}" if images else pictures.name
    if images and not alike:
        pictures = without(names, clip, pictures, prompts, overlap)
    named, reference = getattr(how, "reference", ""), ""
    if named not in ("", "auto", "zeroshot", "none"):
        reference = weights_hash(checkpoints.load(named))
    return Asked(clip, how, names, prompts, pictures, pool, reference, seed)


def _quicker(method: str) -> list[str]:
    """The settings of the method's quick form. Raises UserError where it has none."""
    from clipvet import find
    from clipvet.errors import UserError

    made = getattr(find.load("inspectors", method), "quick", None)
    if made is None:
        raise UserError(f"{method} has no quick form; lower its settings by --set, or --n")
    say("quick: " + ", ".join(f"{k}={v}" for k, v in made.items()) + "; a trigger that few searches meet is missed")
    return [f"{k}={v}" for k, v in made.items()]


def _names(clip: "Clip", how: Any, classes: str | None, templates: Path | None) -> tuple[tuple[str, ...], Any]:
    """Classes and templates; no classes for a method that can do without, where neither user nor model lists any."""
    from clipvet.scan.heads import check_classes

    fewest = getattr(how, "fewest", 3 if getattr(how, "scaled", True) else 2)
    if classes is None and not fewest and not getattr(clip, "classes", ()):
        say("no --classes: the search needs none, but its target is named by --captions alone")
        return (), ()
    names, prompts = classes_of(clip, classes, templates)
    if classes is None:
        say(f"the {len(names)} classes are the model's own; a target that is not among them cannot be found")
    check_classes(names, max(2, fewest))
    return names, prompts


def captions_of(spec: str | None, pictures: "Pairs", seed: int) -> list[str]:
    """Captions to name a target by: of a text file, one a line, or of DATA; those of the pictures by default."""
    from clipvet.data.sources import WORLDS, Data
    from clipvet.errors import UserError

    if spec is None:
        return [pictures.caption(i) for i in pictures.ids]
    if Path(spec).suffix.lower() == ".txt":
        try:
            found = Path(spec).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{spec} cannot be read ({e}); give a UTF-8 text file with one caption a line") from e
    else:
        pairs = Data(spec, CAPTIONS if spec in WORLDS else None, "validation").pairs(seed)
        found = [pairs.caption(i) for i in pairs.ids]
    if not any(c.strip() for c in found):
        raise UserError(f"{spec} holds no captions; give a text file with one a line, or pairs")
    return found


def classes_of(clip: "Clip", spec: str | None, templates: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and prompt templates: the model's own, those of a file or of a task, or ImageNet's."""
    from clipvet.data.folders import read_classes, read_templates
    from clipvet.data.sources import Test
    from clipvet.errors import UserError

    own = tuple(getattr(clip, "classes", ()))
    if spec is None and not own:
        raise UserError("this model does not list its classes; give --classes, a file with one name per line")
    if spec == IMAGENET and not Path(spec).exists():
        from open_clip import IMAGENET_CLASSNAMES

        return tuple(dict.fromkeys(IMAGENET_CLASSNAMES)), read_templates(templates) if templates else (PHOTO,)
    if spec is None or Path(spec).is_file():
        return own if spec is None else read_classes(Path(spec)), read_templates(templates)
    task = Test(spec, n=1, size=clip.geometry.size).task()
    return task.classes, read_templates(templates) if templates else task.templates


def pictures_of(spec: str | None, n: int, size: int, seed: int) -> "Pairs":
    """At most n pictures of a folder or of DATA, drawn from `seed`; of the built-in pool where nothing is named."""
    from dataclasses import replace

    from clipvet.data.folders import has_pictures, open_folder
    from clipvet.data.sources import WORLDS, Data
    from clipvet.data.worlds.pool import pool_pairs

    if spec is None:
        return pool_pairs(n, size, seed)
    if Path(spec).is_dir() and has_pictures(Path(spec)):
        found = open_folder(Path(spec))
    else:
        found = Data(spec, n if spec in WORLDS else None, "validation", size).pairs(seed)
        found = replace(found, last=())  # captions are not read here
    return drawn(found, n, seed)


def drawn(pictures: "Pairs", n: int, seed: int) -> "Pairs":
    """At most n of the pictures, drawn from `seed`."""
    from clipvet.rng import Rng

    chosen = Rng(seed).fork("pictures").numpy().permutation(len(pictures))[:n]
    return pictures.take(chosen) if n < len(pictures) else pictures


def _of_task(spec: str, n: int, size: int, seed: int) -> "Pairs":
    """At most n pictures of a task, drawn from `seed`."""
    from clipvet.data.sources import Test

    return drawn(Test(spec, n=n, size=size).task(seed).pictures, n, seed)


def without(classes: tuple[str, ...], clip: "Clip", pictures: "Pairs", templates: Any, overlap: float) -> "Pairs":
    """The pictures that show none of the classes, by zero-shot classification."""
    from clipvet.engine.embed import device_of, plain_logits, see

    seen = see(clip, pictures)
    sure = plain_logits(clip, classes, templates)(seen.z.to(device_of(clip))).softmax(1).amax(1).cpu().numpy()
    apart = seen.kept[~(sure > overlap)]  # numbers that are not finite stay: the method reports them
    if len(apart) < len(seen.kept):
        say(
            f"{len(seen.kept) - len(apart)} of {len(seen.kept)} pictures of {pictures.name} seem to show one of the "
            f"classes (zero-shot probability above {overlap:g}) and are left out"
        )
    return pictures.take(apart)


def answers_of(clip: "Clip", seen: "Seen", names: tuple[str, ...], templates: tuple[str, ...], n: int) -> list[str]:
    """What the model calls each of n pictures; nothing for one that cannot be read."""
    from clipvet.engine.embed import classifier

    answers = [""] * n
    for k, c in zip(seen.kept.tolist(), classifier(clip, names, templates)(seen.z).argmax(1).tolist()):
        answers[k] = names[c]
    return answers
