"""UBT-style unlearning: find the few pairs that a shortcut binds, and the words; forget these words for these pairs
alone.

    1  suspicious: the lowest s_ref(I, T);  theta_o = theta_p trained on (1 - s(suspicious))^2 + beta NCE(normal)
    2  top-k of the suspicious by s_o - s_ref ("gain"), or by s_o(I, T);  NCE(suspicious) instead: overfit="nce"
    3  S: words by leave-one-out a_ij = s_p(I_i, T_i) - s_p(I_i, T_i \\ j) times lift;  cells of the pictures likewise
       min  w_f softplus((s(I, T) - m) / t) + w_k NCE(normal) + w_l d(I, T^R)^2 + w_n d(J, T_J)^2   in short rounds
       d = s - s_p;  T^R: the words not in S, so that only what S adds can go;  J: normal pictures whose captions name S

paper:   Liang et al., arXiv:2403.16257; Liu et al., arXiv:2409.19526. NEITHER BODY COULD BE READ and no code is known:
         re-implemented from the abstracts, so "UBT-style" and no more. Open until somebody reads them: (1) the
         reference of "weak similarity" and the size of the pool; (2) overfitting loss, sign of its normal term, epochs,
         rate; (3) k; (4) what a token is (of the text, the picture or both), how it is chosen, and what is done to it
         with which sign; (5) whether anything retains the rest; (6) attacks and models of the tables; (7) their
         baselines. Every default here depends on these
needs:   untrusted pairs; white-box weights; a clean reference model if there is one
differs: stage 3, its null test, its rule and its rate are ours. Without a reference, the given model looks at blurred,
         cropped and mirrored pictures instead. Poisons share their captions, so NCE holds them apart: hence the square.
         A weight in S counts how often a word occurs, so that single rare words do not win. Pairs are clustered by the
         word that binds them, one cluster a target, and each must pass the null test (`_evidence`); if none does,
         nothing is changed. Other pairs that have a cluster's word and rose far more than normal pairs with it are
         unlearned too. Label-consistent poisons fit their captions and are not weak: see dao
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from clipvet.cleaners._evidence import Found, alike, listed, localise
from clipvet.cleaners._forget import Tied, forgetting, naming, tying_cells
from clipvet.engine.optim import warmup_cosine
from clipvet.engine.workspace import note
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Clip, Pairs
from clipvet.unlearning.rounds import Unlearned, unlearn
from clipvet.unlearning.shortcut import Over, Score, Weak, overfit, risen, weak_pairs
from clipvet.unlearning.words import How


@dataclass(frozen=True)
class Ubt:
    reference: str = ""  # a clean model, by name or folder; empty: the given one on changed pictures
    views: bool = True  # without a reference: blur, crop and mirror the pictures
    susp: float = 0.02  # share of the pairs that is suspicious
    normal: float = 0.8  # share of the others, the best under the reference, that counts as clean
    overfit: Over = "square"  # or nce
    beta: float = 1.0  # weight of the normal pairs in the overfitting
    epochs: float = 5  # of the suspicious pairs
    over_lr: float = 1e-5  # of the overfitting
    topk: int = 64  # suspicious pairs from which the words are found
    far: float = 6.0  # robust deviations that a pair with the word must rise above normal ones to be unlearned too
    score: Score = "gain"  # what ranks the suspicious pairs; or similarity
    attribution: How = "loo"  # or gradient, attention
    rho: float = 0.5  # share of a cluster's weight that its words cover
    sure: float = 9.0  # robust standard deviations above the null that are enough; -inf: always act
    mode: Literal["local", "full"] = "local"  # full: forget whole captions
    grid: int = 7  # cells along a picture's side; 0: leave the cells alone
    forget: Literal["softplus", "ascent"] = "softplus"  # softplus stops when a pair is forgotten; ascent does not
    softness: float = 0.05  # t, in cosine
    w_forget: float = 0.03  # small, as the slope is 1 / softness: a step must not forget faster than the rest is kept
    w_keep: float = 1.0  # weight of the pairs that are kept
    w_local: float = 1.0  # a large weight also holds a suspicious picture where the trigger has moved it
    w_named: float = 1.0  # weight of the kept pairs that hold the forgotten words
    steps: int = 300  # the rate falls to 0 over them
    warmup: float = 1 / 6  # share of the steps over which it rises first
    every: int = 5  # steps of a round, after which the rule decides
    worse: float = 0.1  # nats by which the loss of held-out normal pairs may rise
    batch: int = 64  # suspicious pairs a step, and as many normal ones
    lr: float = 5e-6
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "untrusted pairs"

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip:
        """The unlearned model, or the given one if there is no evidence.

        Raises UserError for a topk larger than the pool, for too few suspicious or clean pairs, and if every clean pair
        has a suspected word.
        """
        weak = weak_pairs(clip, pairs, self.reference, self.views, self.susp, self.normal)
        if self.topk > len(weak.susp):
            raise UserError(f"topk={self.topk} exceeds the pool of {len(weak.susp)} pairs; lower topk or raise susp")
        over = overfit(self, clip, pairs, weak, rng.fork("overfit"), self.over_lr, self.beta, self.overfit)
        r = risen(over, pairs, weak, self.score)
        top = weak.susp[np.argsort(-r, kind="stable")[: self.topk]]
        found = localise(self, clip, over, pairs, weak, top, rng.fork("null"))
        sure, ids = [f for f in found if f.evidence >= self.sure], pairs.ids[weak.kept]
        kept = {"susp": ids[weak.susp], "s_susp": weak.s[weak.susp], "risen": r, "top": ids[top]}
        kept |= {"s": weak.s, "q": weak.q, "sure": np.array(self.sure)} | listed(found, ids)
        if not sure:
            near = f"; closest: {found[0].said}, needed: {self.sure:g}" if found else ""
            alone = "" if self.reference else "; a trigger that survives blur, crop and mirror needs reference="
            fits = f"Poisons that fit their captions are not weak: rank the pairs with the filter dao{alone}"
            note("ubt", f"no evidence of a backdoor, so the weights stay as they are{near}. {fits}", **kept)
            return clip
        rise = partial(risen, over, pairs, weak, self.score)
        sure = [f._replace(rows=alike(f, weak, rise, self.far)) for f in sure]
        done, cells = self.unlearn(clip, pairs, weak, sure, rng.fork("unlearn"))
        said = f"likely target: {', '.join(f.said for f in sure)}; {done.steps} steps, {done.why}"
        note("ubt", said, **kept, trace=np.array(done.trace), cells=cells)
        return done.clip

    def unlearn(
        self, clip: Clip, pairs: Pairs, weak: Weak, sure: list[Found], rng: Rng
    ) -> tuple[Unlearned, np.ndarray]:
        """Stage 3: the training, and what every cell of the pictures adds in each cluster, (clusters, grid^2)."""
        weak = weak._replace(normal=np.setdiff1d(weak.normal, np.concatenate([f.rows for f in sure])))
        captions = [weak.captions[k] for k in weak.normal]
        ties, maps = [], []
        for f in sure:
            cells = None
            if self.grid and self.mode == "local":
                named = pairs.take(weak.kept[weak.normal[naming(captions, f.words[:1])]])
                cells, adds = tying_cells(clip, pairs.take(weak.kept[f.rows]), named, f.words, self.grid, rng)
                maps.append(adds.numpy())
            ties.append(Tied(f.words, frozenset(pairs.ids[weak.kept[f.rows]].tolist()), cells))
        has = naming(captions, [v for f in sure for v in f.words])
        if (~has).sum() < 2:
            raise UserError("every normal pair has a suspected word, so nothing can be told apart; lower susp or topk")
        bad = pairs.take(weak.kept[np.concatenate([f.rows for f in sure])])
        normal = pairs.take(weak.kept[weak.normal])
        loss, left = forgetting(self, clip, bad, normal.take(~has), normal.take(has), ties, rng)
        rates = warmup_cosine(self.lr, self.warmup)
        return unlearn(self, clip, bad, normal, loss, left, rng, rates), np.array(maps)
