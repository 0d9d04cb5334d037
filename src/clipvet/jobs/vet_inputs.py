"""What a vetting is given: its options, and what they open. Bad input is refused here, before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvet.jobs.inspection import SMALL, Asked, ask, open_suspect
from clipvet.jobs.opening import open_data, open_key, open_keyed, open_shots, open_task

if TYPE_CHECKING:
    from clipvet.scan.verdicts import Null
    from clipvet.types import Backdoor, Clip, Pairs, Task

SHOTS = 16  # labelled pictures of each class that few-shot methods get
SPARE = 16  # pictures of each class that must be left to measure on, where shots are taken out of the task


@dataclass(frozen=True)
class Options:
    """The words of the user. docs/howto/vet.md says what each means."""

    model: str
    pretrained: str | None = None
    data: str | None = None
    task: str | None = None
    images: str | None = None
    reference: str | None = None
    nulls: tuple[Path, ...] = ()
    shots: str | None = None
    cleaned: Path | None = None
    backdoor: Path | None = None
    classes: Path | None = None
    templates: Path | None = None
    image_key: str = "filepath"
    caption_key: str = "title"
    n: int | None = None
    alpha: float = 0.05
    seed: int = 0
    quick: bool = False

    def words(self, **other: Any) -> list[str]:
        """The options as words of a command, without those that say nothing; `other` replaces some."""
        held = {**self.__dict__, **other}
        out = []
        for name, value in held.items():
            flag = "--" + {"nulls": "null"}.get(name, name).replace("_", "-")
            usual = type(self).__dataclass_fields__[name].default
            for one in value if isinstance(value, tuple) else (value,):
                if one is True:
                    out.append(flag)
                elif one not in (None, False) and one != usual:
                    out += [flag, str(one)]
        return out


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the options open."""

    options: Options
    clip: "Clip"
    weights: str  # hash of the model's
    test: "Task | None"  # without the shots
    pairs: "Pairs | None"  # poisoned as the answer key says, if there is one
    made: bool  # whether they were poisoned here
    key: "Backdoor | None"
    shots: "Pairs | None"
    nulls: "tuple[Null, ...]"
    reference: str = ""  # hash of its weights

    @property
    def small(self) -> str:
        """The world whose settings suit the model: `shapes` for pictures as small as there, else none."""
        return "shapes" if self.clip.geometry.size <= SMALL else ""


def open_inputs(options: Options, clip: "Clip") -> Inputs:
    """Opens all that the options name beside the model. Raises UserError for words that name nothing."""
    from clipvet.results import weights_hash
    from clipvet.scan.verdicts import read_null

    nulls = tuple(map(read_null, options.nulls))
    size, o, reference = clip.geometry.size, options, _others(options, clip)
    test = open_task(o.task, o.data or "", size, o.classes if o.task else None, o.templates, o.seed)
    pairs, key, made = None, open_key(o.backdoor), False
    if o.data:
        split = "train" if o.backdoor else "validation"
        n = 8000 if o.data == "shapes" and o.n is None and not o.backdoor else o.n
        source = open_data(o.data, n, split, size, o.image_key, o.caption_key)
        pairs, key, made = open_keyed(source, o.seed, o.backdoor)
    if o.shots:
        shots = open_shots(o.shots, size, None, o.templates, SHOTS, o.seed)
    elif test is None or (pairs is not None and not prompted(clip)):  # prompts learn from labelled pictures alone
        shots = None
    else:
        shots, test = _spared(test, o.task or "", size, o.seed)
    found = Inputs(options, clip, weights_hash(clip), test, pairs, made, key, shots, nulls, reference)
    for null in nulls:
        null_for(null, found)
    return found


def _others(options: Options, clip: "Clip") -> str:
    """Opens the reference and the cleaned copy, to be told of bad ones at once. Returns the reference's hash.

    Raises UserError for a model that cannot be compared with the given one.
    """
    from clipvet.errors import UserError
    from clipvet.results import weights_hash

    found, size, own = {}, clip.geometry.size, weights_hash(clip)
    asks = {"--reference": "the clean model that it was made from", "--cleaned": "the cleaned copy"}
    for option, named in zip(asks, (options.reference, options.cleaned)):
        if named:
            other = open_suspect(str(named), None, options.seed)
            if other.geometry.size != size:
                told = f"{option} {named} sees pictures of {other.geometry.size} pixels, the model of {size}"
                raise UserError(f"{told}; give {asks[option]}")
            found[option] = weights_hash(other)
            if found[option] == own:
                raise UserError(f"{option} {named} is the model itself; give {asks[option]}, or leave it out")
    return found.get("--reference", "")


def check_paths(options: Options) -> None:
    """UserError for files and folders that are missing; this takes no time, so it comes before all else."""
    from clipvet.data.sources import WORLDS
    from clipvet.errors import UserError

    o = options
    files = {"--pretrained": o.pretrained, "--classes": o.classes, "--templates": o.templates, "--backdoor": o.backdoor}
    files |= {"--cleaned": o.cleaned, **{f"--null {k}": p for k, p in enumerate(o.nulls, 1)}}
    for option, path in files.items():
        plain = option != "--pretrained" or "/" in str(path) or "." in str(path)  # else a tag of open_clip's
        if path and plain and not Path(path).exists():
            raise UserError(f"{option.split()[0]} {path} does not exist; check the path")
    for option, spec in {"--task": o.task, "--shots": o.shots, "--images": o.images}.items():
        if spec and spec not in WORLDS and not Path(spec).exists() and "{" not in spec and "*" not in spec:
            raise UserError(f"{option} {spec} does not exist; check the path")
    if o.data and o.data not in WORLDS and "{" not in o.data and "*" not in o.data and not Path(o.data).exists():
        raise UserError(f"--data {o.data} does not exist; check the path")
    if o.backdoor and not o.data:
        raise UserError("--backdoor says which of the pairs are poisoned; give them as --data, or leave it out")


def _spared(test: "Task", spec: str, size: int, seed: int) -> "tuple[Pairs | None, Task]":
    """Some labelled pictures of each class, and the task without them; None where it has too few to spare."""
    import numpy as np

    from clipvet.data.sources import WORLDS, shots
    from clipvet.rng import Rng

    if spec in WORLDS:  # its shots come from another split
        return open_shots(spec, size, None, None, SHOTS, seed), test
    counts = np.bincount(test.labels, minlength=len(test.classes))
    if counts.min() < SHOTS + SPARE or len(test.classes) < 2:
        return None, test
    some = shots(test, SHOTS, Rng(seed).fork("shots"))
    rest = ~np.isin(test.pictures.ids, some.ids)
    return some, replace(test, pictures=test.pictures.take(rest), labels=test.labels[rest])


def asked_of(inputs: Inputs, clip: "Clip", method: str | None, settings: Sequence[str] = (), n: int = 1000) -> Asked:
    """The inspection of this model with this method, on the pictures and classes at hand.

    Classes: --classes, else for prompts those that they were learned for, else the task's, else the model's own, else
    those of shapes for a model of its kind, else ImageNet's.

    Pictures: --images, else the task's, else the pairs', else those that the inspection takes itself.
    """
    from clipvet.data.sources import WORLDS
    from clipvet.scan.reference import family

    o = inputs.options
    listed, own = str(o.classes) if o.classes and not o.task else None, lists_classes(clip)
    spec = listed or o.task or ("shapes" if o.data in WORLDS else None)
    if own and not o.classes:
        spec = None  # a task may have fewer, and the target must be among them
    if spec is None and not own:
        spec = "shapes" if family(clip) else "imagenet"
    images = o.images
    if images is None and o.data and o.data not in WORLDS and not o.task:
        images = o.data if (o.image_key, o.caption_key) == ("filepath", "title") else None
    asked = ask(clip, method, spec, o.templates, images, [*settings], n, 0.9, o.seed)
    if spec and spec == o.task and inputs.test is not None and o.classes:
        asked = asked._replace(classes=inputs.test.classes)
    return asked


def lists_classes(clip: "Clip") -> bool:
    """Whether the model says which classes its prompts were learned for."""
    return bool(getattr(clip, "classes", ()))


def prompted(clip: "Clip") -> bool:
    """Whether it has learned class prompts on a frozen model."""
    return hasattr(clip, "classifier") and hasattr(clip, "base")


def encoder_of(clip: "Clip") -> Any:
    """The model whose picture tower is in use: below class prompts the frozen one, else the model itself."""
    return clip.base if prompted(clip) else clip  # pyright: ignore


def null_for(null: "Null", inputs: Inputs) -> str:
    """The test, prompts or encoder, that these clean models are for. Raises UserError where they are for neither."""
    from clipvet.errors import UserError

    kind = null.method.partition("(")[0]
    if kind == "Collapse":
        return "encoder"
    if kind == "ClipInspector":
        return "prompts"
    raise UserError(
        f"the clean models of --null were inspected with {kind}, and vet uses collapse for encoders and clip_inspector "
        "for prompts; calibrate with one of these"
    )
