"""SafeCLIP: only pairs that look safe are trained as pairs; from the others, each tower learns by itself.

    warm-up     L_uni = 1/2 (L_I + L_T),  L_m = CE(s NN(Z1, P_m) Z2', 1)     Z1, Z2: two views, P_m: pool of embeddings
    slow epoch  L_clip = 1/2 [CE(s Z1 W2', 1) + CE(s W1 Z2', 1)] at a hundredth of the rate
    split       q_j = P(upper of two normals | cos(z_j, w_j)),  safe = {j : q_j >= threshold}
    each round  L_clip(safe) + L_uni(risky); then safe = the best by cosine, `growth` more

paper:   Yang et al., ICML 2024, arXiv:2310.05862; text not read: from its code's behaviour and authors' commands
needs:   untrusted pairs; training from scratch
differs: pairs are scored on the clean view; the posterior is made monotone in the cosine; each phase has its own
         moments, and one warm-up and decay (the code's rates rise again); a round is one pass; if the mixture does not
         split, the best `first` are safe. fidelity="released": the code's way in all this, L_m transposed, pool cut off
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clipvet.data.augment import Views, variants
from clipvet.engine.embed import embed_texts, pair_cosines
from clipvet.engine.fit import Memory, fit_by
from clipvet.engine.losses import match_loss, neighbour_loss
from clipvet.engine.optim import Schedule, constant, piece, warmup_cosine
from clipvet.engine.workspace import kept_scores, note
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.training._mixture import safe_set
from clipvet.training._neighbours import Pool
from clipvet.types import Batch, Clip, Pairs


class Stage(NamedTuple):  # what the phases share
    pools: list[Pool]  # of pictures, of captions
    memory: Memory
    words: Rng  # key of the captions' variants


@dataclass(frozen=True)
class SafeClip:
    epochs: int = 32  # in total
    unimodal: int = 5  # of these: the warm-up
    slow: float = 1  # of these: L_clip at slow_lr
    batch: int = 512  # pairs a step
    lr: float = 5e-4  # AdamW's peak
    slow_lr: float = 0.01  # share of lr
    warmup: float = 0.1  # fraction of a phase's steps
    threshold: float = 0.9  # posterior from which a pair is safe
    growth: float = 0.01  # share of the pairs that each round adds to the safe ones
    cap: float = 0.85  # largest safe share
    first: float = 0.15  # safe share if the mixture does not split,
    least: float = 0.0  # or finds a smaller share than this safe
    pool: float = 0.02  # size of a pool, as a share of the pairs
    risky: bool = True  # learn from the risky pairs too
    augment: Views = field(default_factory=Views)
    eda: float = 0.1  # share of a caption's words that change
    synonyms: bool = False  # WordNet's, if eda is on
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adamw"  # or muon
    muon_lr: float = 0.02  # Muon's peak
    fidelity: str = "correct"  # or released
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"

    def train(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """Raises UserError for fewer pairs than two batches, and for cosines that are all alike or not finite."""
        clip, stage = self.prepare(clip, pairs, rng)
        rounds, share = max(1, round(self.epochs - self.unimodal - self.slow)), 0.0
        for k in range(rounds):
            scoring = partial(self.cosines, clip, pairs, stage, rng.fork("score", k))
            cosines = kept_scores("cosines", scoring)
            safe, by_mixture = self.split(cosines, share or None)
            said = f"round {k + 1} of {rounds}: {safe.mean():.1%} safe" + (not by_mixture) * ", mixture did not split"
            note(f"round_{k:03}", said, ids=pairs.ids, safe=safe, cosines=cosines, by_mixture=np.array(by_mixture))
            share = min((share or safe.mean()) + self.growth, self.cap)
            passes = (~safe & self.risky, safe) if self.fidelity == "released" else (safe | self.risky,)
            for n, part in enumerate(pairs.take(chosen) for chosen in passes if chosen.sum() >= 2):
                loss, lr = partial(self.joint, pairs.ids[safe]), piece(warmup_cosine(self.lr, self.warmup), k, rounds)
                clip = self._fit(clip, part, loss, rng.fork("round", k, n), 1, lr, stage)
        return clip

    def prepare(self, clip: Clip, pairs: Pairs, rng: Rng) -> tuple[Clip, Stage]:
        """The model after warm-up and slow epoch, ready for the first split, and what the rounds continue with."""
        if len(pairs) < 2 * self.batch:
            raise UserError(f"{pairs.name}: {len(pairs)} pairs are fewer than two batches; lower batch={self.batch}")
        size, dim = max(2, round(self.pool * len(pairs))), embed_texts(clip, [pairs.caption(pairs.ids[0])]).shape[1]
        pools = [Pool(size, dim, rng.fork("pool", k), wrap=self.fidelity != "released") for k in range(2)]
        stage = Stage(pools, Memory(nn.ModuleList(pools)), rng.fork("eda"))
        fast, slow = warmup_cosine(self.lr, self.warmup), constant(self.lr * self.slow_lr)
        for loss, epochs, rates in ((self.alone, self.unimodal, fast), (self.together, self.slow, slow)):
            if epochs:
                clip = self._fit(clip, pairs, loss, rng.fork(loss.__name__), epochs, rates, stage)
                stage.memory.moments = {}  # each phase starts its own
        return clip, stage

    def cosines(self, clip: Clip, pairs: Pairs, stage: Stage, rng: Rng) -> np.ndarray:
        """cos(picture, caption) of every pair, shape (n,); -2 for unreadable pictures."""

        def seen(b: Batch) -> Batch:
            (image, _), (caption, _) = self.views(b, stage, rng.fork(b.ids[:1].tolist()))
            return b._replace(images=image, captions=caption)

        s, kept, _ = pair_cosines(clip, pairs.map(seen) if self.fidelity == "released" else pairs, check=False)
        out = np.full(len(pairs), -2.0, np.float32)
        out[kept] = s.numpy()
        return out

    def split(self, cosines: np.ndarray, share: float | None) -> tuple[np.ndarray, bool]:
        """Which pairs are safe, shape (n,) bool: by threshold or the best `share`; and whether that went as planned."""
        return safe_set(cosines, self.threshold, share, self.first, self.cap, self.fidelity == "released", self.least)

    def views(self, batch: Batch, stage: Stage, rng: Rng) -> tuple[list[Tensor], list[list[str]]]:
        """Two views of each picture, and two of each caption, which are the same in every epoch."""
        images = [self.augment(batch.images, rng.fork(v)) for v in (0, 1)]
        return images, [variants(batch, stage.words, self.eda, self.synonyms, v) for v in (0, 1)]

    def alone(self, stage: Stage, clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        """L_uni: the pool's neighbour of one view must find the other view; for pictures and captions separately."""
        encoders, losses = (clip.encode_image, clip.encode_text), []
        for pool, encode, (one, two) in zip(stage.pools, encoders, self.views(batch, stage, rng)):
            first = torch.no_grad()(encode)(one)  # pyright: ignore
            near = pool.nearest(first).to(first.dtype)
            losses.append(neighbour_loss(near, encode(two), clip.logit_scale, self.fidelity == "released"))  # pyright: ignore
            pool.push(first)
        return {"loss": (losses[0] + losses[1]) / 2, "unimodal_img": losses[0], "unimodal_txt": losses[1]}

    def joint(self, safe: np.ndarray, stage: Stage, clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        """L_uni of the batch's risky pairs plus L_clip of its safe ones."""
        mine, parts = np.isin(batch.ids.cpu().numpy(), safe), {"loss": 0 * clip.logit_scale}
        for loss, at in ((self.alone, ~mine), (self.together, mine)):
            if at.sum() >= 2:
                found = loss(stage, clip, batch.take(np.flatnonzero(at)), rng)
                parts |= found | {"loss": parts["loss"] + found["loss"]}
        return parts

    def together(self, stage: Stage, clip: Clip, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        """L_clip, between one view of the pictures and the other view of the captions."""
        images, captions = self.views(batch, stage, rng)
        (z1, z2), (w1, w2) = map(clip.encode_image, images), map(clip.encode_text, captions)
        return {"loss": (match_loss(z1, w2, clip.logit_scale) + match_loss(w1, z2, clip.logit_scale)) / 2}

    def _fit(self, clip: Clip, pairs: Pairs, loss, rng: Rng, epochs: float, schedule: Schedule, stage: Stage) -> Clip:
        own = {"epochs": epochs, "schedule": schedule, "peak": self.lr, "memory": stage.memory}
        return fit_by(self, clip, pairs, partial(loss, stage), rng, **own)
