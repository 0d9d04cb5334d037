"""DATA and TASK as users name them: `shapes`, `foreign`, a CSV/TSV/parquet, a folder with one folder per class."""

from dataclasses import dataclass
from pathlib import Path

from clipvet.errors import UserError
from clipvet.types import Pairs, Task
from clipvet.worlds.foreign import Foreign
from clipvet.worlds.shapes import Shapes


@dataclass(frozen=True)
class Data:
    """Captioned pictures by name. `spec`: shapes, foreign (another generator) or a table's path.

    n and split belong to the embedded worlds (default 10,000 pairs); a table is taken whole unless n is given.
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
        kinds = {"shapes": Shapes, "foreign": Foreign}
        return kinds[self.spec](size=self.size, seed=seed) if self.spec in kinds else None

    def pairs(self, seed: int = 0) -> Pairs:
        """The pairs; an embedded world is drawn from `seed`."""
        match self.world(seed):
            case Shapes() as shapes:
                return shapes.pairs(self.n or 10_000, split=self.split, lazy=self.lazy)
            case Foreign() as foreign:
                return foreign.pairs(self.n or 8_000, split=self.split)
        from clipvet.files import open_pairs

        pairs = open_pairs(self.spec, image_key=self.image_key, caption_key=self.caption_key, separator=self.separator)
        return pairs.take(slice(self.n)) if self.n else pairs


@dataclass(frozen=True)
class Test:
    """A zero-shot task by name: shapes, or a folder with one folder per class."""

    spec: str
    n: int = 2000  # pictures, of the embedded world's
    by: str = "shape"  # or "colour shape"
    size: int = 32
    classes: Path | None = None
    templates: Path | None = None

    def world(self, seed: int = 0) -> Shapes | None:
        return Shapes(size=self.size, seed=seed) if self.spec == "shapes" else None

    def task(self, seed: int = 0) -> Task:
        if world := self.world(seed):
            return world.task(self.n, by=self.by)
        if not Path(self.spec).is_dir():
            raise UserError(f"task '{self.spec}' is neither 'shapes' nor a folder with one folder per class")
        from clipvet.files import open_task

        return open_task(self.spec, classes=self.classes, templates=self.templates)
