"""What the parts of CLIP-Inspector contribute: runs with fewer pictures and with other losses, on models of the suite.

command:  clipvet run recipes/inspector_ablation.py --jobs 2 --out results/inspector_ablation
expected: without a reference, which is the paper's form: AUROC 0.55 as it is (plain), 0.50 and 0.58 with 100 and 500
          pictures, 0.46 with cross-entropy, 0.36 with the logit as loss. With a reference: 0.83 and 0.94 with 100 and
          500 pictures, 0.87 with cross-entropy, 0.82 with the logit; the suite's own clip_inspector (margin loss, 1,000
          pictures) has 0.94
hardware: 2 CPU cores, 60 minutes. The 30 models come from the suite's cache, if that has run
"""

from dataclasses import replace
from pathlib import Path

from clipvet.experiments.presets import shapes
from clipvet.experiments.recipe import Recipe, load_recipes
from clipvet.inspectors.clip_inspector import ClipInspector

KINDS = ("none", "badclip_prompt", "badclip_lean")  # models that lean towards no class are the hard ones


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    how = replace(shapes(ClipInspector()), precision="bf16")
    plain = replace(how, reference="none")
    arms = {"plain": plain} | {f"pool_{n}": replace(plain, pictures=n) for n in ((32,) if smoke else (100, 500))}
    arms |= {loss: replace(plain, loss=loss) for loss in (("logit",) if smoke else ("cross_entropy", "logit"))}
    if not smoke:
        arms["pool_100_long"] = replace(plain, pictures=100, epochs=8)  # 32 updates, as 1,000 pictures give
        beside = ("pool_100", "pool_500", "cross_entropy", "logit")
        arms |= {f"{name}_reference": replace(arms[name], reference="zeroshot") for name in beside}
    suite = load_recipes(Path(__file__).with_name("inspector_suite.py"), smoke)
    pool, made = 64 if smoke else suite[0].pool, []
    for r in suite:
        attacks = {name: r.attacks[name] for name in KINDS if name in r.attacks}
        if attacks:
            made.append(replace(r, name="inspector_ablation", attacks=attacks, inspectors=arms, pool=pool))
    return tuple(made)
