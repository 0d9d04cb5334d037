"""What CLIP-Inspector's parts do: fewer pictures, other losses. Models of the suite.

command:  clipvet run recipes/inspector_ablation.py --jobs 2 --out results/inspector_ablation
expected: no figures are known. By the paper's notes a pool of 100 pictures is markedly weaker than one of 1,000; with
          the updates of 1,000 (100_long) it may be less so. On earlier prototypes: pool 100 AUROC 0.97, 1,000: 1.00.
          The arms are the paper's form, without the reference, but for the last three, which stand beside the
          suite's own clip_inspector (margin, 1,000 pictures, with the reference)
hardware: 2 CPU cores, 40 minutes by estimate; the 30 models come from the suite's cache where that has run
"""

from dataclasses import replace
from pathlib import Path

from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.presets import shapes
from clipvet.recipe import Recipe, load_recipes

KINDS = ("none", "badclip_prompt", "badclip_lean")  # models that lean towards no class are the hard ones


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    how = replace(shapes(ClipInspector()), precision="bf16")
    plain = replace(how, reference="none")
    arms = {"plain": plain} | {f"pool_{n}": replace(plain, pictures=n) for n in ((32,) if smoke else (100, 500))}
    arms |= {loss: replace(plain, loss=loss) for loss in (("logit",) if smoke else ("cross_entropy", "logit"))}
    if not smoke:
        arms["pool_100_long"] = replace(plain, pictures=100, epochs=8)  # 32 updates, as 1,000 pictures give
        beside = ("pool_100", "cross_entropy", "logit")
        arms |= {f"{name}_reference": replace(arms[name], reference="zeroshot") for name in beside}
    suite = load_recipes(Path(__file__).with_name("inspector_suite.py"), smoke)
    pool, made = 64 if smoke else suite[0].pool, []
    for r in suite:
        attacks = {name: r.attacks[name] for name in KINDS if name in r.attacks}
        if attacks:
            made.append(replace(r, name="inspector_ablation", attacks=attacks, inspectors=arms, pool=pool))
    return tuple(made)
