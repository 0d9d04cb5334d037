"""Assimilation: find one word after which all prompts mean the same to the text tower; a text backdoor is such a word.

    min over e  -mean_{i != j} cos(u(e, t_i), u(e, t_j)) + away mean_i cos(u(e, t_i), v(e, t_i))
    e: a free token embedding before the prompts t; u: the text tower; v: a clean one, if `reference` names it
    s     = mean_{i != j} cos(u(e, t_i), u(e, t_j)) on prompts that the search has not seen
    score = max over searches and classes c of (s + cos(mean_i u(e, t_i), w_c)) / 2 - (the same s in v) - grown
    w_c: the feature of class c's prompts; grown: how much more alike they are in u than in v without any word

paper:   AMDET, arXiv:2512.00343, after what its authors say of it and the behaviour of its public code (Apache-2.0)
needs:   class names; white-box weights of the text tower with gradient; best a clean model (reference=MODEL)
differs: AMDET makes all tokens of one prompt alike, for towers that steer picture generators; here all prompts are
         alike at their end, which is what CLIP reads. The word stands at the beginning. Its gates are not thresholds
         here: the share of pairs above 0.8 and the agreement of the searches are reported, and the curvature of the
         loss, which AMDET uses against natural backdoors, is not computed. Without a reference the score has no scale:
         clean towers have words after which prompts are much alike too, most of all those tuned on other captions.
         Such a tower sees prompts more alike without any word; `grown`, which is ours, takes that off
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from clipvet.engine.embed import class_embeddings, device_of
from clipvet.errors import UserError
from clipvet.models import checkpoints
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.scan.assimilation import Assimilated, assimilate
from clipvet.scan.heads import check_classes
from clipvet.types import Clip, Finding, Pairs, Suspicion

ALIKE = 0.8  # cosine from which two prompts are alike, for `assimilated`
MOST = 64  # prompts


@dataclass(frozen=True)
class Assimilation:
    searches: int = 8  # side by side
    steps: int = 100
    lr: float = 0.05  # Adam's
    away: float = 0.1  # weight of the distance from the reference
    fresh: float = 1 / 3  # share of the prompts that the search does not see
    reference: str = "none"  # a clean model, as `clipvet.load` takes it

    needs: ClassVar[str] = "class names; white-box weights"
    scaled: ClassVar[bool] = False
    judges: ClassVar[str] = "its text tower alone"
    waits: ClassVar[bool] = True  # without clean models its verdict is left open
    reads_text: ClassVar[bool] = True  # pictures play no part

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding:
        """The class that the best word leads to. Triggers are of pictures, so there is none.

        Raises Unsupported where there is no text tower that can take a free token, UserError for fewer than two classes
        and fewer than six prompts.
        """
        check_classes(classes, 2)
        still, names = frozen(clip), sorted(classes)
        prompts = [t.replace("{}", c) for c in names for t in templates]
        order = rng.fork("prompts").numpy().permutation(len(prompts))[:MOST]
        n = max(2, round(self.fresh * len(order)))
        if len(order) - n < 4:
            raise UserError(
                f"{len(prompts)} prompts are too few to compare; give more classes or --templates (6 at least)"
            )
        fresh, seen = ([prompts[k] for k in part] for part in (order[:n], order[n:]))
        anchor = None
        if self.reference != "none":
            anchor = frozen(checkpoints.load(self.reference, device=device_of(clip)))
        found = assimilate(
            still, anchor, seen, fresh, self.searches, self.steps, self.lr, self.away, rng.fork("search")
        )
        return self._finding(still, found, classes, templates)

    def _finding(self, clip: Clip, found: Assimilated, classes: Sequence[str], templates: Sequence[str]) -> Finding:
        with torch.no_grad():
            w = class_embeddings(clip, classes, templates).cpu()
        z = F.normalize(found.u.mean(1), dim=1)
        near = z @ w.T
        plain = torch.zeros_like(found.same) if found.anchor is None else found.anchor + found.grown
        scores = (found.same[:, None] + near) / 2 - plain[:, None]
        hits = F.one_hot((found.u @ w.T).argmax(2), len(classes)).double().mean(1)
        base = 1 / len(classes)  # each prompt says its own class
        best = scores.argmax(0)  # of each class, the search that speaks most against it
        rows = tuple(
            Suspicion(c, -float(found.same[k]), float(hits[k, t]), base, float(scores[k, t]), True)
            for t, (c, k) in enumerate(zip(classes, best.tolist()))
        )
        most = int(scores.amax(0).argmax())
        k = int(best[most])
        cosines = found.u[k] @ found.u[k].T
        own = torch.eye(len(cosines), dtype=torch.bool)
        told = {
            "searches": self.searches,
            "updates": self.steps,
            "same": float(found.same[k]),
            "same_before": found.before,
            "assimilated": float((cosines[~own] > ALIKE).double().mean()),
            "agreement": float((z @ z[k]).mean()),
            "length": float(found.length[k]),
        }
        told |= {} if found.anchor is None else {"same_in_reference": float(found.anchor[k]), "grown": found.grown}
        return Finding(float(scores.max()), classes[most], None, rows, False, told, feature=tuple(z[k].tolist()))
