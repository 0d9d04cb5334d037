"""clipvet: vet CLIP models and the web data behind them.

    load      a model, from a path, a name, or what open_clip and transformers give you
    inspect   does this model look backdoored?
    clean     remove a backdoor, and measure before and after
    filter    which pairs look poisoned?
    detect    does a picture carry a trigger?
    train     a CLIP from pairs, safely or not
    evaluate  accuracy, retrieval and attack success, with intervals
    vet       all of these that fit, and one advice: use it, or not

Their results show themselves in a notebook: `.to_frame()`, `.plot()`, `.save(path)`. `help(clipvet.clean)` says more.
Further names serve scripts that go deeper. Each is imported when it is first used, so that `clipvet --help` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from clipvet import _moved  # noqa: F401  so that old import paths work

if TYPE_CHECKING:  # what editors and type checkers see
    from clipvet import find as find
    from clipvet.api.models import load as load
    from clipvet.api.verbs import clean as clean
    from clipvet.api.verbs import detect as detect
    from clipvet.api.verbs import evaluate as evaluate
    from clipvet.api.verbs import filter as filter
    from clipvet.api.verbs import inspect as inspect
    from clipvet.api.verbs import train as train
    from clipvet.data.answer_key import load_backdoor as load_backdoor
    from clipvet.data.answer_key import save_backdoor as save_backdoor
    from clipvet.data.dirty import poison as poison
    from clipvet.data.folders import open_task as open_task
    from clipvet.data.tables import open_pairs as open_pairs
    from clipvet.data.worlds.shapes import Shapes as Shapes
    from clipvet.detectors._guard import Guard as Guard
    from clipvet.engine.fit import fit as fit
    from clipvet.errors import UserError as UserError
    from clipvet.experiments.evaluation import measure_all as measure_all
    from clipvet.experiments.recipe import Recipe as Recipe
    from clipvet.experiments.run import run as run
    from clipvet.jobs.vetting import vet as vet
    from clipvet.models.checkpoints import save as save
    from clipvet.rng import Rng as Rng
    from clipvet.types import Backdoor as Backdoor
    from clipvet.types import Clip as Clip
    from clipvet.types import Measured as Measured
    from clipvet.types import Pairs as Pairs
    from clipvet.types import Task as Task

__version__ = "0.1.0"

_PUBLIC = {
    "Backdoor": "types", "Clip": "types", "Pairs": "types", "Task": "types", "Measured": "types",
    "Rng": "rng", "UserError": "errors", "find": "find",
    "load": "api.models", "save": "models.checkpoints", "vet": "jobs.vetting",
    "inspect": "api.verbs", "clean": "api.verbs", "filter": "api.verbs", "detect": "api.verbs", "train": "api.verbs",
    "evaluate": "api.verbs",
    "open_pairs": "data.tables", "open_task": "data.folders", "Shapes": "data.worlds.shapes",
    "load_backdoor": "data.answer_key", "save_backdoor": "data.answer_key", "poison": "data.dirty",
    "fit": "engine.fit", "Guard": "detectors._guard",
    "Recipe": "experiments.recipe", "run": "experiments.run", "measure_all": "experiments.evaluation",
}  # fmt: skip
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipvet' has no attribute {name!r}")
    module = importlib.import_module(f"clipvet.{_PUBLIC[name]}")
    return module if name == "find" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
