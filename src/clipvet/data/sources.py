"""DATA and TASK as users name them: an embedded world, a table, shards, a folder with one folder per class.

Embedded: `shapes`; `shapes-shifted`, its classes in another domain; `foreign`, another generator (no task).

Labelled pictures for few-shot methods are pairs like any others: a picture's caption is its class in a template.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from clipvet import io
from clipvet.data.worlds.foreign import Foreign
from clipvet.data.worlds.shapes import KINDS, SHIFTED, Shapes
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Pairs, Task

WORLDS = {"shapes": Shapes, "shapes-shifted": partial(Shapes, **SHIFTED), "foreign": Foreign}


@dataclass(frozen=True)
class Data:
    """Captioned pictures by name. `spec`: one of WORLDS, or what `files.open_pairs` opens: a table, shards, a folder.

    n and split belong to the embedded worlds (default 10,000 pairs); other data are taken whole unless n is given.
    """

    spec: str
    n: int | None = None
    split: str = "train"
    size: int = 32  # pixels, of the embedded worlds' pictures
    image_key: str = "filepath"
    caption_key: str = "title"
    separator: str | None = None
    lazy: bool = False  # render on demand, for sets larger than memory

    def world(self, seed: int = 0) -> Shapes | Foreign | None:
        """The embedded world that the name stands for."""
        return WORLDS[self.spec](size=self.size, seed=seed) if self.spec in WORLDS else None

    def pairs(self, seed: int = 0) -> Pairs:
        """The pairs; an embedded world is drawn from `seed`."""
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
    """A zero-shot task by name: shapes, shapes-shifted, or a folder with one folder per class.

    classes: of a folder, names for its folders; of shapes, the list of those that are asked for, as `only` is.
    """

    spec: str
    n: int = 2000  # pictures, of the embedded world's, before some classes are chosen
    by: str = "shape"  # or "colour shape", "texture shape", "background shape"
    size: int = 32
    classes: Path | None = None
    templates: Path | None = None
    only: tuple[str, ...] = ()  # of the embedded world's classes; none: all
    name: str = ""  # of a choice of classes, for the rows

    @property
    def said(self) -> str:
        return self.name or self.spec

    def world(self, seed: int = 0) -> Shapes | None:
        found = Data(self.spec, size=self.size).world(seed)
        return found if isinstance(found, Shapes) else None

    def task(self, seed: int = 0) -> Task:
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
    """The kind of the embedded world's classes that a file lists, and the list."""
    listed = io.read_json(path)
    if not isinstance(listed, list) or len(set(map(str, listed))) < max(2, len(listed)):
        raise UserError(f"{path} is no JSON list of two or more different class names; mend it")
    fits = [by for by, known in KINDS.items() if set(map(str, listed)) <= set(known)]
    if not fits:
        raise UserError(f"{path} mixes or misnames classes of shapes; take all of one kind: {', '.join(KINDS)}")
    return fits[0], tuple(listed)


@dataclass(frozen=True)
class Half:
    """The base or the new classes of a task, by the rule of prompt learning: the first half of the sorted names."""

    test: Test
    half: str = "base"  # or new
    also: tuple[str, ...] = ()  # further names that pictures may be called, as a backdoor's target among new classes

    @property
    def spec(self) -> str:
        return self.test.spec

    @property
    def said(self) -> str:
        return self.test.said

    def world(self, seed: int = 0) -> Shapes | None:
        return self.test.world(seed)

    def task(self, seed: int = 0) -> Task:
        task = self.test.task(seed)
        names, m = sorted(task.classes), (len(task.classes) + 1) // 2
        chosen = task.only(names[:m] if self.half == "base" else names[m:])
        return replace(chosen, classes=chosen.classes + tuple(c for c in self.also if c not in chosen.classes))


@dataclass(frozen=True)
class Shots:
    """k labelled pictures of each class of a task, drawn from `seed`; of the embedded world's validation split."""

    test: Test | Half
    k: int = 16
    without: tuple[str, ...] = ()  # classes of which no picture is taken

    @property
    def spec(self) -> str:
        return f"{self.k}-shot {self.test.said}"

    def world(self, seed: int = 0) -> Shapes | None:
        return self.test.world(seed)

    def pairs(self, seed: int = 0) -> Pairs:
        task = self.test.task(seed)
        if world := self.test.world(seed):  # the test's own pictures come from the test split
            by = next(kind for kind, known in KINDS.items() if set(task.classes) <= set(known))
            n = (4 * self.k + 40) * len(KINDS[by])  # enough of every class
            task = world.task(n, by=by, split="validation").only(task.classes)
        return shots(task, self.k, Rng(seed).fork("shots"), self.without)


def shots(task: Task, k: int, rng: Rng, without: tuple[str, ...] = ()) -> Pairs:
    """k random pictures of every class but those in `without`, captioned by their class in the task's first template.

    Raises UserError where a class has fewer pictures, or is none of the task's.
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
