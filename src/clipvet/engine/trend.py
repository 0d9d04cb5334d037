"""Did a training's loss fall? Read from its log, so that a run that was killed and went on is judged whole."""

import json
import math
from pathlib import Path

import numpy as np

LEAST = 20  # steps; fewer tell nothing
CHANCE = 0.99  # share of the loss of guessing above which nothing was learned
LOW = 0.5  # share of it below which a loss that stays where it is may simply have been low from the start


def complaint(log: Path, batch: int) -> str:
    """A sentence if the contrastive loss of a training's only fit did not fall, or ends at chance; else nothing.

    log: its log.jsonl, a line a step. batch: pairs that are told apart; at chance the loss is ln(batch). Trainings of
    several fits change their loss between them, and are not judged. Nor is a low loss that rises by less than its
    noise, as in fine-tuning.
    """
    if not log.exists():
        return ""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    losses = np.array([line["loss"] for line in lines if "loss" in line])
    if len({line["fit"] for line in lines}) != 1 or len(losses) < LEAST:
        return ""
    tenth = len(losses) // 10
    first, last = float(losses[:tenth].mean()), float(losses[-tenth:].mean())
    chance, noise = math.log(batch), float(np.diff(losses).std()) / math.sqrt(tenth)  # of the difference of two means
    if last > CHANCE * chance:
        what = f"the loss is at chance: {last:.2f} in the last tenth of the steps, where guessing has {chance:.2f}"
    elif last >= first and (last > LOW * chance or last - first > 2 * noise):
        what = f"the loss did not fall: {first:.2f} in the first tenth of the steps, {last:.2f} in the last"
    else:
        return ""
    return f"{what}; do not use this model: lower lr, train longer, or see whether captions fit their pictures"
