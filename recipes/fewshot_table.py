"""The few-shot cleaners against the attacks that rvpt_shapes leaves out, on the same tower, deep enough for prompts.

command:  clipvet run recipes/fewshot_table.py --jobs 2 --out results/fewshot_table
expected: victims' ASR >= 0.95. RVPT's ASR is at most 0.03 on stripes, triangles and issba, and 0.01 to 0.12 on the
          adaptive attacks. Read it together with rvpt_shapes
hardware: 2 CPU cores with bf16, 28 minutes a seed
"""

from dataclasses import replace
from pathlib import Path

from clipvet.experiments.recipe import Recipe, load_recipes

ADDED = ("stripes", "triangles", "issba", "adaptive_par", "adaptive_rvpt")  # to the attacks of rvpt_shapes
PROBED = ("blended", "sig", "wanet")  # rvpt_shapes has no linear probe against them


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    pairs, _ = load_recipes(Path(__file__).with_name("cleaning_table.py"), smoke)
    deep, others = load_recipes(Path(__file__).with_name("rvpt_shapes.py"), smoke)
    shots, probe = deep.defender_data["16-shot"][0], {"linear_probe": others.cleaners["linear_probe"]}
    main = replace(
        deep,
        name="fewshot_table",
        attacks={n: a for n, a in pairs.attacks.items() if n in ADDED},
        cleaners=dict(deep.cleaners) | probe,
        defender_data={"16-shot": (shots, ("vpt", "rvpt", "linear_probe"))},
        measures=(),
        took=pairs.took,
    )
    known = {n: a for n, a in deep.attacks.items() if n in PROBED}
    second = replace(main, attacks=known, cleaners=probe, defender_data={"16-shot": (shots, ("linear_probe",))})
    return (main, second) if known else (main,)
