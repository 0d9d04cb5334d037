"""What an experiment is, and how one is read from a file of recipes/."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipvet.data.sources import Data, Half, Shots, Test
from clipvet.errors import UserError
from clipvet.types import Attack, Cleaner, Detector, Filter, Inspector, Training


@dataclass(frozen=True)
class Recipe:
    """One experiment: every attack on every model, then every training, filter and cleaner against it.

    A defense is scored only where the victim's ASR (and psr, hit@1) reaches `took`. Defender's data: name -> (data,
    cleaners' names), so that a cleaner can be fed from elsewhere too, or with labelled pictures (Shots); None: the
    victim's own dirty pairs, which cleaners of untrusted pairs need.
    """

    name: str
    model_names: tuple[str, ...]
    attacks: Mapping[str, Attack]
    target: str
    victim_data: Data | Shots
    test: Test | Half
    cleaners: Mapping[str, Cleaner] = field(default_factory=dict)
    defender_data: Mapping[str, tuple[Data | Shots | None, tuple[str, ...]]] = field(default_factory=dict)
    rebound: Cleaner | None = None  # benign fine-tuning, after which every cleaned model is measured again
    trainings: Mapping[str, Training] = field(default_factory=dict)  # instead of the attack's own
    filters: Mapping[str, Filter] = field(default_factory=dict)  # rank the dirty pairs, with the victim at hand
    inspectors: Mapping[str, Inspector] = field(default_factory=dict)  # is the model backdoored? (suite.suite)
    detectors: Mapping[str, Detector] = field(default_factory=dict)  # does this picture of the test carry the trigger?
    watched: int = 500  # pictures of other classes than the target, each with and without the trigger, for them
    pool: int = 1000  # unlabelled pictures from outside the classes, that they are given
    oracle: Training | None = None  # the control that is told which pairs are poisons, and leaves them out
    pretrained: str | None = None  # start the attack from these weights instead of from scratch
    base: Training | None = None  # start the attack from what this makes of the clean pairs
    base_data: tuple[Data, Test] | None = None  # that it is trained and measured on; none: the victim's pairs, the test
    twin: bool = False  # clean_model_asr and the like: of the attack's training on the clean pairs, not of its start
    measures: tuple[str, ...] = ()  # costly ones, beside those that always run
    took: float = 0.5  # smallest ASR at which the attack counts as planted
    seeds: tuple[int, ...] = (0,)
    reported: Mapping[str, float] = field(default_factory=dict)  # "paper says": model/attack/method/metric -> fraction


def load_recipes(path: Path, smoke: bool = False) -> tuple[Recipe, ...]:
    """Of a file that defines `recipe(smoke)`, one or several of one name. A recipe is code: run only what you trust."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; recipes lie in recipes/")
    spec = importlib.util.spec_from_file_location(f"clipvet_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # pyright: ignore
    spec.loader.exec_module(module)  # pyright: ignore
    if not callable(getattr(module, "recipe", None)):
        raise UserError(f"{path} defines no function recipe(smoke); see recipes/par_structured.py")
    made = module.recipe(smoke)
    return made if isinstance(made, tuple) else (made,)


def told(part: Any) -> str:
    """A repr that names only what differs from the defaults: what tells one recipe from another."""
    if isinstance(part, Mapping):
        return "{" + ", ".join(f"{k!r}: {told(v)}" for k, v in part.items()) + "}"
    if isinstance(part, tuple):
        return "(" + ", ".join(map(told, part)) + ")"
    if not dataclasses.is_dataclass(part):
        return repr(part)
    given = [(f.name, getattr(part, f.name), _default(f)) for f in dataclasses.fields(part)]
    return f"{type(part).__name__}({', '.join(f'{k}={told(v)}' for k, v, d in given if repr(v) != repr(d))})"


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
