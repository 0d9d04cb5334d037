"""DATA and TASK as users name them: an embedded world, a table, shards, a folder with one folder per class.

The embedded worlds are `shapes`, `shapes-shifted` (the same classes in another domain) and `foreign` (another
generator, without a task). Labelled pictures for few-shot methods are pairs too: the caption of a picture is its class
in a template.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from clipvet import io
from clipvet.data.class_names import is_json, plain, read_classes
from clipvet.data.worlds.foreign import Foreign
from clipvet.data.worlds.shapes import KINDS, SHIFTED, Shapes
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Pairs, Task

WORLDS = {"shapes": Shapes, "shapes-shifted": partial(Shapes, **SHIFTED), "foreign": Foreign}


@dataclass(frozen=True)
class Data:
    """Captioned pictures by name: an embedded world (WORLDS), or anything that `tables.open_pairs` opens."""

    spec: str
    n: int | None = None  # the first n pairs; None: all of a file, 10,000 of shapes, 8,000 of foreign
    split: str = "train"  # of the embedded worlds
    size: int = 32  # side of the embedded worlds' pictures, pixels
    image_key: str = "filepath"
    caption_key: str = "title"
    separator: str | None = None
    lazy: bool = False  # draw the pictures of `shapes` when they are read, for sets larger than memory

    def world(self, seed: int = 0) -> Shapes | Foreign | None:
        """The embedded world of this name, drawn from `seed`; None for files."""
        return WORLDS[self.spec](size=self.size, seed=seed) if self.spec in WORLDS else None

    def pairs(self, seed: int = 0) -> Pairs:
        """The pairs; an embedded world is drawn from `seed`. Raises UserError for files that cannot be used."""
        if self.n is not None and self.n < 1:
            raise UserError(f"n={self.n} takes no pairs; give 1 or more")
        match self.world(seed):
            case Shapes() as shapes:
                return shapes.pairs(self.n or 10_000, split=self.split, lazy=self.lazy)
            case Foreign() as foreign:
                return foreign.pairs(self.n or 8_000, split=self.split)
        from clipvet.data.tables import open_pairs

        pairs = open_pairs(self.spec, image_key=self.image_key, caption_key=self.caption_key, separator=self.separator)
        return pairs.take(slice(self.n)) if self.n else pairs


@dataclass(frozen=True)
class Test:
    """A zero-shot task by name: `shapes`, `shapes-shifted`, or a folder with one folder of pictures for each class."""

    spec: str
    n: int = 2000  # pictures of an embedded world, before some classes are chosen
    by: str = "shape"  # what its classes are; or "colour shape", "texture shape", "background shape"
    size: int = 32  # side of its pictures, pixels
    classes: Path | None = None  # of a folder: names for its folders; of an embedded world: a list of some classes
    templates: Path | None = None  # of a folder: a text file, see `folders.read_templates`
    only: tuple[str, ...] = ()  # some classes of an embedded world; empty: all
    name: str = ""  # for the result rows, where some classes are chosen

    @property
    def said(self) -> str:
        """The name in result rows."""
        return self.name or self.spec

    def world(self, seed: int = 0) -> Shapes | None:
        """The embedded world of this name, drawn from `seed`; None for a folder, and for `foreign`."""
        found = Data(self.spec, size=self.size).world(seed)
        return found if isinstance(found, Shapes) else None

    def task(self, seed: int = 0) -> Task:
        """The task; that of an embedded world is drawn from `seed`. Raises UserError for one that cannot be used."""
        if world := self.world(seed):
            by, only = _chosen(self.classes) if self.classes else (self.by, self.only)
            task = world.task(self.n, by=by)
            for missing in set(only) - set(task.classes):
                raise UserError(f"{task.name} has no class '{missing}'; its classes: {', '.join(task.classes[:12])}")
            return task.only(only) if only else task
        if not Path(self.spec).is_dir():
            raise UserError(
                f"'{self.spec}' is neither 'shapes' nor a folder with one folder of pictures for each class"
            )
        from clipvet.data.folders import open_task

        return open_task(self.spec, classes=self.classes, templates=self.templates)


def _chosen(path: Path) -> tuple[str, tuple[str, ...]]:
    """The classes of an embedded world that a file lists, after their kind (a key of KINDS). Raises UserError."""
    listed = io.read_json(path) if is_json(path) else list(read_classes(path))
    if not isinstance(listed, list) or len(set(map(str, listed))) < max(2, len(listed)):
        raise UserError(f"{path} is no list of two or more different class names; mend it")
    fits = [by for by, known in KINDS.items() if set(map(str, listed)) <= set(known)]
    if not fits:
        raise UserError(f"{path} mixes or misnames classes of shapes; take all of one kind: {', '.join(KINDS)}")
    return fits[0], tuple(listed)


@dataclass(frozen=True)
class Half:
    """Half of a task's classes: the base classes or the new ones, as papers on prompt learning split them.

    The base classes are the first half of the sorted names.
    """

    test: Test
    half: str = "base"  # or "new"
    also: tuple[str, ...] = ()  # further class names without pictures, such as a backdoor's target beside new classes

    @property
    def spec(self) -> str:
        """The name of the whole task."""
        return self.test.spec

    @property
    def said(self) -> str:
        """The name in result rows."""
        return self.test.said

    def world(self, seed: int = 0) -> Shapes | None:
        """The embedded world of the task, drawn from `seed`; None for a folder."""
        return self.test.world(seed)

    def task(self, seed: int = 0) -> Task:
        """The task with this half of its classes. Raises UserError for one that cannot be used."""
        task = self.test.task(seed)
        names, m = sorted(task.classes), (len(task.classes) + 1) // 2
        some = names[:m] if self.half == "base" else names[m:]
        if len(some) + len(self.also) < 2:
            raise UserError(
                f"the {self.half} half of the {len(names)} classes of {task.name} is {', '.join(some) or 'empty'}, and "
                "a task needs two or more; leave --half out, or give more classes"
            )
        chosen = task.only(some)
        known = {plain(c) for c in chosen.classes}
        return replace(chosen, classes=chosen.classes + tuple(c for c in self.also if plain(c) not in known))


@dataclass(frozen=True)
class Shots:
    """k labelled pictures of each class of a task, as pairs; in an embedded world, from its validation split."""

    test: Test | Half
    k: int = 16
    without: tuple[str, ...] = ()  # classes that get no pictures

    @property
    def spec(self) -> str:
        """The name in result rows."""
        return f"{self.k}-shot {self.test.said}"

    def world(self, seed: int = 0) -> Shapes | None:
        """The embedded world of the task, drawn from `seed`; None for a folder."""
        return self.test.world(seed)

    def pairs(self, seed: int = 0) -> Pairs:
        """The labelled pictures, drawn from `seed`. Raises UserError as `shots` does."""
        task = self.test.task(seed)
        if world := self.test.world(seed):  # the test's own pictures come from the test split
            by = next(kind for kind, known in KINDS.items() if set(task.classes) <= set(known))
            n = (4 * self.k + 40) * len(KINDS[by])  # enough of every class
            task = world.task(n, by=by, split="validation").only(task.classes)
        return shots(task, self.k, Rng(seed).fork("shots"), self.without)


def shots(task: Task, k: int, rng: Rng, without: tuple[str, ...] = ()) -> Pairs:
    """k random pictures of each class except those in `without`, as pairs.

    The caption of a picture is its class in the task's first template. Raises UserError if a class has fewer than k
    pictures, or if `without` names a class that the task does not have.
    """
    g, rows, captions = rng.numpy(), [], [""] * len(task.pictures.captions)
    for missing in set(without) - set(task.classes):
        raise UserError(f"{task.name} has no class '{missing}'; its classes: {', '.join(task.classes[:12])}")
    for label, name in enumerate(task.classes):
        own = np.flatnonzero(task.labels == label)
        if name in without:
            continue
        if len(own) < k:
            raise UserError(f"class '{name}' of {task.name} has {len(own)} pictures, {k} shots need {k}; lower shots")
        chosen = np.sort(task.pictures.ids[g.choice(own, k, replace=False)])
        rows += chosen.tolist()
        for row in chosen:
            captions[row] = task.captions_of(label)[0]
    name = f"{k}-shot {task.name}"
    return replace(task.pictures, captions=captions, rows=np.array(rows, dtype=np.int64), name=name)
