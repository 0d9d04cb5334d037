"""clipvet: vet CLIP models and the web data behind them.

These are the names that most scripts need. Each is imported when it is first used, so that `clipvet --help` is quick.
"""

import importlib
from typing import Any

from clipvet import _moved  # noqa: F401  so that old import paths work

__version__ = "0.1.0"

_PUBLIC = {
    "Backdoor": "types", "Clip": "types", "Pairs": "types", "Task": "types", "Measured": "types",
    "Rng": "rng", "UserError": "errors", "find": "find",
    "vet": "jobs.vetting", "load": "models.checkpoints", "save": "models.checkpoints",
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
