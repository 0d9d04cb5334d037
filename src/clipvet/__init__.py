"""clipvet: vet CLIP models and the web data behind them.

The public list is short, and imported on first use so that `clipvet --help` answers at once.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Backdoor": "types", "Clip": "types", "Pairs": "types", "Task": "types", "Measured": "types",
    "Rng": "rng", "UserError": "errors",
    "load": "models", "save": "models",
    "open_pairs": "files", "open_task": "files",
    "load_backdoor": "answer_key", "save_backdoor": "answer_key", "poison": "dirty",
    "Recipe": "recipe", "run": "run", "measure_all": "evaluation",
    "fit": "fit", "find": "find",
}  # fmt: skip
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipvet' has no attribute {name!r}")
    module = importlib.import_module(f"clipvet.{_PUBLIC[name]}")
    return module if _PUBLIC[name] == name and name == "find" else getattr(module, name)
