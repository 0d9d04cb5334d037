"""A recipe is one experiment; it is read from a Python file of recipes/."""

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
    """One experiment: every attack on every model, and every defense against each.

    Methods are given by names of the recipe's own choice, which the result rows show. A defense is scored only where
    the attack took: where the victim's attack success rate (and psr, hit@1) reaches `took`.
    """

    name: str
    model_names: tuple[str, ...]  # as `clipvet.load` takes them
    attacks: Mapping[str, Attack]
    target: str  # the class that triggered pictures shall be taken for; one of the test's
    victim_data: Data | Shots  # what the attack poisons
    test: Test | Half
    cleaners: Mapping[str, Cleaner] = field(default_factory=dict)
    # name -> (data, names of the cleaners that get it); data None: the victim's own dirty pairs
    defender_data: Mapping[str, tuple[Data | Shots | None, tuple[str, ...]]] = field(default_factory=dict)
    rebound: Cleaner | None = None  # benign fine-tuning, after which every cleaned model is measured again
    rebound_steps: tuple[int, ...] = ()  # a curve: benign fine-tunings of so many steps, also of the untreated victim
    trainings: Mapping[str, Training] = field(default_factory=dict)  # on the dirty pairs, instead of the attack's own
    filters: Mapping[str, Filter] = field(default_factory=dict)  # which pairs are poisoned? With the victim at hand
    inspectors: Mapping[str, Inspector] = field(default_factory=dict)  # is the model backdoored? See suite.py
    nulls: Mapping[str, str] = field(default_factory=dict)  # inspector -> architecture whose null judges (reference.py)
    detectors: Mapping[str, Detector] = field(default_factory=dict)  # does a picture of the test carry the trigger?
    watched: int = 500  # for the detectors: pictures of other classes than the target, each with and without trigger
    trusted: int = 500  # for the detectors: further pictures without trigger, whose scores set the thresholds
    pool: int = 1000  # for the inspectors: unlabelled pictures that show none of the test's classes
    oracle: Training | None = None  # the control: this training on the pairs without the poisons, by the answer key
    pretrained: str | None = None  # weights that the attack starts from: a file or a tag; None: random weights
    base: Training | None = None  # trains a clean model on clean pairs, from which the attack then starts
    base_data: tuple[Data, Test] | None = None  # its pairs and its test; None: the victim's pairs and the recipe's test
    twin: bool = False  # clean_model_asr and the like are of the attack's training on clean pairs, not of its start
    measures: tuple[str, ...] = ()  # costly measures to run beside those that always run
    took: float = 0.5  # smallest attack success rate, a fraction, at which the attack counts as planted
    seeds: tuple[int, ...] = (0,)
    reported: Mapping[str, float] = field(default_factory=dict)  # the paper's: model/attack/method/metric -> fraction


def load_recipes(path: Path, smoke: bool = False) -> tuple[Recipe, ...]:
    """The recipes of a Python file that defines `recipe(smoke)` and returns one `Recipe` or several of one name.

    smoke: ask for tiny sizes, to see that it runs at all. The file is executed: load only what you trust.
    Raises UserError if there is no such file or it defines no such function.
    """
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
    """A repr that names only what differs from the defaults, so that a new field does not change old recipes."""
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
