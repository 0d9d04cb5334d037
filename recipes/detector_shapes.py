"""Does this picture carry a trigger? All detectors, on models with backdoors in their prompts or in their encoders.

command:  clipvet run recipes/detector_shapes.py --jobs 2 --out results/detector_shapes
expected: on one development victim of badclip_prompt (docs/decisions/0014), AUROC 0.99 for strip and scale_up and 0.39
          for bdetclip, which is not made for frozen encoders; 0.5 for random. We know nothing about the other attacks
          yet
hardware: 2 CPU cores, a minute for each victim. Victims come from the suites' caches, if those have run
"""

from dataclasses import replace
from pathlib import Path

from clipvet import find
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe, load_recipes


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    detectors = {name: shapes(find.load("detectors", name)()) for name in find.names("detectors")}
    suites = ("inspector_suite",) if smoke else ("inspector_suite", "inspector_encoders")
    made = []
    for r in (r for suite in suites for r in load_recipes(Path(__file__).with_name(f"{suite}.py"), smoke)):
        attacks = {name: a for name, a in r.attacks.items() if name not in ("none", "calibration")}
        if attacks:
            own = {
                "attacks": attacks,
                "detectors": detectors,
                "inspectors": {},
                "watched": 16 if smoke else 500,
                "trusted": 24 if smoke else 500,
            }
            made.append(replace(r, name="detector_shapes", seeds=(0,), **own))
    return tuple(made)
