"""Does CLIP-Inspector's repair remove the backdoor it found? Half of the suite's backdoors, four kinds of stamp.

command:  clipvet run recipes/repair_shapes.py --jobs 2 --out results/repair_shapes
expected: ASR in percent after tuning on pictures with each stamp, mean over 25 victims: none (clean only) 20.7, noise
          19.7, a wrong class's trigger 24.4, the target's recovered trigger (repair) 6.9. Repair changes accuracy by
          +0.4 points (-3.7 at worst). clip_inspector_score falls below 6, where clean models are. If the inspector
          accuses a wrong class, the repair does not work
hardware: 2 CPU cores, four minutes a victim. Making the victims takes longer; they come from the suite's cache, if that
          has run
"""

from dataclasses import replace
from pathlib import Path

from clipvet.cleaners.ci_repair import CiRepair
from clipvet.data.sources import Shots
from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe, load_recipes

CONTROLS = {"clean_only": "clean", "random_noise": "noise", "wrong_class": "wrong"}


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    how, made = shapes(CiRepair()), []
    how = replace(how, inspector=replace(how.inspector, precision="bf16"), outside=32 if smoke else 1000)
    if smoke:
        how = replace(how, tuning=replace(how.tuning, epochs=1))
    controls = {n: replace(how, stamp=stamp) for n, stamp in CONTROLS.items() if not smoke or n == "clean_only"}
    suite = [r for r in load_recipes(Path(__file__).with_name("inspector_suite.py"), smoke) if "none" in r.attacks]
    for r in suite[::2]:  # every other task
        attacks = {n: a for n, a in r.attacks.items() if n != "none"}
        looks = {n: i for n, i in r.inspectors.items() if n == ("no_inversion" if smoke else "clip_inspector")}
        own = Shots(r.test, 16)  # the user's own pictures, of which the prompts were made
        r = replace(r, name="repair_shapes", attacks=attacks, inspectors={})
        made.append(replace(r, cleaners=controls, defender_data={own.spec: (own, tuple(controls))}))
        made.append(  # what is repaired is inspected again
            replace(r, cleaners={"ci_repair": how}, inspectors=looks, defender_data={own.spec: (own, ("ci_repair",))})
        )
    return tuple(made)
