"""Clean models of several kinds, from which the nulls in src/clipvet/scan/nulls are made.

command:  python benchmarks/clean_models.py --out runs/clean            (--model shapes-vit)
          clipvet calibrate --models runs/clean --classes shapes --out src/clipvet/scan/nulls/shapes-vit.json
expected: 25 folders in about eight minutes on two cores. Five models are trained from scratch on 10,000 pairs of
          shapes, for 5.2, 2.5 and three times 1.5 epochs; four go on from each with an epoch on 3,000 pairs: of another
          seed, of shapes-shifted, of foreign, and of its own
Seeds 100 to 104. The null that is shipped also has the 18 clean models that recipes/inspector_encoders.py makes on its
development seeds 10 to 12 (their base models too): they are trained as long as the victims of the recipes, and clean
models that know more score higher. Run that recipe with --seed 10, 11 and 12, and link the folders of its clean models
from runs/stages into runs/clean as 10-base, 10-none ... before the second command.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from clipvet.data.sources import Data
from clipvet.experiments.presets import shapes
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.training.plain import Plain

SCRATCH = {100: 2.5, 101: 1.5, 102: 1.5, 103: 1.5, 104: 5.2}  # epochs, by seed
FURTHER = 1.0
FURTHER_PAIRS = 3000
OTHERS = ("shapes", "shapes-shifted", "foreign", "again")


def made(model: str, out: Path, seed: int) -> None:
    """Trains the five models of one seed, but for those that are there."""
    first, how = out / f"{seed}-scratch", shapes(Plain())
    if not (first / "card.json").exists():
        clip = replace(how, epochs=SCRATCH[seed]).train(
            checkpoints.load(model, rng=Rng(seed)), Data("shapes").pairs(seed), Rng(seed)
        )
        checkpoints.save(clip, first, {"role": "clean", "method": "scratch"})
    for world in OTHERS:
        folder = out / f"{seed}-{world}"
        if not (folder / "card.json").exists():
            own = world == "again"
            pairs = Data("shapes" if own else world, FURTHER_PAIRS).pairs(seed if own else seed + 1000)
            clip = replace(how, epochs=FURTHER).train(checkpoints.load(str(first)), pairs, Rng(seed).fork(world))
            checkpoints.save(clip, folder, {"role": "clean", "method": world})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-vit")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for s in SCRATCH:
        made(given.model, given.out, s)
        print(f"seed {s} done", flush=True)
