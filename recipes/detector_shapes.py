"""Does this picture carry a trigger? Detectors at test time, on backdoors in prompts and in encoders.

command:  clipvet run recipes/detector_shapes.py --jobs 2 --out results/detector_shapes
expected: AUROC, on one development victim of badclip_prompt (docs/decisions/0014): strip and scale_up 0.99, bdetclip
          0.39, as frozen encoders are not what it is made for; random 0.5. Nothing is known of the other attacks
hardware: 2 CPU cores; a minute a victim, which come from the suites' caches where they have run
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
            own = {"attacks": attacks, "detectors": detectors, "inspectors": {}, "watched": 16 if smoke else 500}
            made.append(replace(r, name="detector_shapes", seeds=(0,), **own))
    return tuple(made)
