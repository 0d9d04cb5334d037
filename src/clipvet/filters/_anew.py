"""A model for filters that are given none: one is trained a little on the pairs themselves.

It learns the trigger too, as whatever is trained on these pairs does, so filters for a victim's own pairs work with it.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from clipvet.data.held import Held
from clipvet.engine.embed import Embedded, embed_pairs
from clipvet.engine.losses import own_loss
from clipvet.engine.workspace import in_words, note
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.rng import Rng
from clipvet.training.plain import Plain
from clipvet.types import Clip, Geometry, Pairs

FEW = 200  # pairs, with fewer of which no tail can be estimated
KNOWS = 0.6  # share of the pairs whose own caption must fit better than another pair's
ENOUGH = 0.9  # share of held-out pairs whose own caption fits better, from which training ends
GAIN = 0.01  # of that share, with less of which it ends too
STEPS = 150  # optimiser steps of a round, at least
HELD = 500  # pairs that are held out, and at most a tenth of all


class Trained(NamedTuple):
    clip: Clip
    said: str  # what was trained, and how well it knows held-out pairs
    knows: float  # share of the held-out pairs whose own caption fits better than another pair's


@dataclass(frozen=True)
class Own:
    """Plain training from random weights in short rounds, until the model knows held-out pairs."""

    epochs: float = 2  # of a round
    rounds: int = 4  # at most
    sample: int = 30_000  # pairs that are trained on, at most
    batch: int = 128  # pairs a step
    lr: float = 1e-3  # AdamW's peak; Muon's is 0.02

    def train(self, clip: Clip, pairs: Pairs, rng: Rng) -> Trained:
        """clip: gives the architecture. Says beforehand how long it takes. Raises UserError for too few pairs."""
        if len(pairs) < FEW:
            raise UserError(
                f"{len(pairs)} pairs are too few to train a model on; give {FEW}, or the model that was trained on them"
                " as --model"
            )
        order, n = rng.fork("sample").numpy().permutation(len(pairs)), min(HELD, len(pairs) // 10)
        held, mine = (
            pairs.take(np.sort(order[:n])),
            cached(pairs.take(np.sort(order[n:][: self.sample])), clip.geometry),
        )
        model: Clip = checkpoints.fresh(clip, rng.fork("init"))
        epochs = max(self.epochs, STEPS * self.batch / len(mine))
        how = Plain(epochs, self.batch, self.lr, weight_decay=0.1, optimizer="muon")
        seconds = _seconds(model, mine, self.batch) * epochs * len(mine) / self.batch
        note("anew", f"no model given: training one on {len(mine):,} of the pairs, in up to {self.rounds} rounds of "
             f"about {in_words(seconds)}")  # fmt: skip
        knows, k = 0.0, 0
        for k in range(self.rounds):
            before, model = knows, how.train(model, mine, rng.fork("round", k))
            found = embed_pairs(model, held)
            knows = known(found, held.ids[found.kept], rng.fork("others"))
            if knows >= ENOUGH or knows < before + GAIN:
                break
        said = (
            f"No model was given, so one was trained on {len(mine):,} of the pairs for {(k + 1) * epochs:.3g} epochs. "
            f"Of {n} held-out pairs, {knows:.0%} fit their caption better than another one."
        )
        return Trained(model, said, knows)


def cached(pairs: Pairs, geometry: Geometry) -> Pairs:
    """The readable pairs, decoded and resized once. Raises UserError where hardly one can be read."""
    pixels, captions = [], []
    for rows in np.array_split(np.arange(len(pairs)), max(1, len(pairs) // 256)):
        batch = pairs.at(geometry)[rows]
        pixels.append((batch.images * 255).round().to(torch.uint8).cpu())
        captions += batch.captions
    if len(captions) < FEW // 2:
        raise UserError(f"{pairs.name}: {len(captions)} of {len(pairs)} pictures can be read; check the files")
    return Pairs(Held(torch.cat(pixels)), captions, np.arange(len(captions)), geometry, name=pairs.name)


def _seconds(clip: Clip, pairs: Pairs, batch: int) -> float:
    """How long a training step takes, about."""
    model, rows = checkpoints.fresh(clip, Rng(0)), pairs[: min(batch, len(pairs))]
    took = []
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        z, w = model.encode_image(rows.images.to(model.mean.device)), model.encode_text(rows.captions)
        own_loss(model, z, w).backward()
        took.append(time.monotonic() - began)
    return 1.3 * took[-1]  # the optimiser's part


def known(found: Embedded, ids: Int[np.ndarray, " m"], rng: Rng) -> float:
    """The share of the pairs whose own caption fits their picture better than another pair's."""
    order = rng.keys(ids.tolist()).numpy().argsort()
    other = np.empty(len(ids), np.int64)
    other[order] = np.roll(order, 1)
    s, theirs = ((found.z * w).sum(1).cpu().double().numpy() for w in (found.w, found.w[torch.from_numpy(other)]))
    return float(((s > theirs) + (s == theirs) / 2).mean())
