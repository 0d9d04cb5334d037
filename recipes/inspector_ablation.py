"""What CLIP-Inspector's parts do: fewer pictures, other losses, with and without the reference. Models of the suite.

command:  clipvet run recipes/inspector_ablation.py --jobs 2 --out results/inspector_ablation
expected: no figures are known. By the paper's notes a pool of 100 pictures is markedly weaker than one of 1,000; with
          the updates of 1,000 (100_long) it may be less so. On earlier prototypes: pool 100 AUROC 0.97, 1,000: 1.00
hardware: 2 CPU cores; a minute a model, which come from the suite's cache where that has run
"""

from dataclasses import replace
from pathlib import Path

from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.presets import shapes
from clipvet.recipe import Recipe, load_recipes


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    how = shapes(ClipInspector())
    arms = {"clip_inspector": how}
    arms |= {f"pool_{n}": replace(how, pictures=n) for n in ((32,) if smoke else (100, 500))}
    if not smoke:
        arms["pool_100_long"] = replace(how, pictures=100, epochs=8)  # 32 updates, as 1,000 pictures give
        arms["half_eps"] = replace(how, eps=how.eps / 2)
    arms |= {loss: replace(how, loss=loss) for loss in (("logit",) if smoke else ("cross_entropy", "logit"))}
    if not smoke:
        arms |= {f"{name}_plain": replace(arm, reference="none") for name, arm in arms.items()}
    suite = load_recipes(Path(__file__).with_name("inspector_suite.py"), smoke)
    pool = 64 if smoke else suite[0].pool
    return tuple(replace(r, name="inspector_ablation", inspectors=arms, pool=pool) for r in suite)
