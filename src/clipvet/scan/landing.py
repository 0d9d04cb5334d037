"""Where the searches of `collapse` ended: how suspect that is, which class lies there, and which captions.

s_t = share of the pictures that are called t * max(alike, cos(z, w_t)),  or alike where no classes are given
z   = mean of the embeddings of changed pictures, of length 1;  w_t: the class prompt
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import classifier, device_of, embed_texts
from clipvet.errors import UserError
from clipvet.scan.collapse import Collapsed, alike
from clipvet.types import Clip, Finding, Suspicion

STEP = 0.1  # how far beyond the usual a score of 1 is
SAME = 0.99  # mean cosine of untouched pictures above which nothing can be learned from them
CLOSE = 0.8  # cosine of two target features that count as one
ENOUGH = 6  # classes, so that their own scores say how far one usually stands out
SMALL = 0.05  # mean of a mask; what covers more of a picture says little, whatever it leads to
COMMON = 0.5  # share of untouched pictures that a class gets, above which it stands out anyway
FAR = 0.05  # quantile of the pictures' own cosines below which a class does not explain the target feature


def shares(logits: Float[Tensor, "*k n c"]) -> Float[np.ndarray, "*k c"]:
    """The share of the pictures that each class gets."""
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).double().mean(-2).numpy()


def check_varied(h: Float[Tensor, "n d"], name: str) -> None:
    """Raises UserError where the model sees the pictures of this name all alike. h: of the untouched pictures."""
    if not bool(torch.isfinite(h).all()):
        raise UserError("the model's embeddings are not finite (NaN), so it cannot be inspected; give whole weights")
    if (same := float(alike(h))) > SAME:
        raise UserError(
            f"the model sees the pictures of {name} all alike (mean cosine {same:.2f}) before anything is changed, so "
            "nothing can be found with them; give pictures that differ (--images). If they do, the model is broken"
        )


def finding(
    clip: Clip,
    found: Collapsed,
    forms: Sequence[str],
    usual: Mapping[str, float],
    untouched: Float[Tensor, "n d"],
    classes: Sequence[str],
    templates: Sequence[str],
    told: Mapping[str, float],
) -> Finding:
    """What all searches say together: the most suspect class and the best search.

    forms: of the searches, in their order. usual: what each form reaches in clean models. untouched: embeddings of the
    pictures for judging before they were changed. told: settings to report.
    """
    same, over = found.same.double().numpy(), np.array([usual[f] for f in forms])
    z = F.normalize(found.h.mean(1), dim=1)
    more: dict[str, float] = {}
    if classes:
        with torch.no_grad():
            tell, device = classifier(clip, classes, templates), device_of(clip)
            called, base = (tell(h.to(device)).float().cpu() for h in (found.h.flatten(0, 1), untouched))
            near, scale = tell(z.to(device)).float().cpu(), float(clip.logit_scale)
        share, before = shares(called.unflatten(0, found.h.shape[:2])), shares(base)
        scores = (share * np.maximum(same[:, None], near.numpy() / scale) - over[:, None]) / STEP
        most = int(scores.max(0).argmax())
        best = scores.argmax(0)  # of each class, the search that speaks most against it
        top, agree = int(best[most]), scores.argmax(1) == most
        rows = tuple(
            Suspicion(c, -float(same[k]), float(share[k, t]), float(before[t]), float(scores[k, t]), True)
            for t, (c, k) in enumerate(zip(classes, best))
        )
        more = {"near": float(near[top].max()) / scale}
        if len(classes) >= ENOUGH and float(found.area[top]) <= SMALL and before[most] <= COMMON:
            more["lead"] = float(np.diff(np.sort(scores.max(0))[-2:])[0])
        more["usual_near"] = float((base.amax(1) / scale).quantile(FAR))
    else:
        scores, rows, best, most = (same[:, None] - over[:, None]) / STEP, (), [], None
        top = int(scores.argmax())
        agree = (z @ z[top]).numpy() >= CLOSE
    by_form = {f"{f}_score": float(scores[[g == f for g in forms]].max()) for f in usual if f in forms}
    told = {**told, "searches": len(forms), **by_form, "agreement": float(agree.mean())}
    told |= {"area": float(found.area[top]), "likeness": float(same[top]), **more}
    return Finding(
        float(scores.max()),
        None if most is None else classes[most],
        found.triggers[top],
        rows,
        False,
        told,
        tuple(found.triggers[k] for k in best),
        feature=tuple(z[top].tolist()),
    )


def captions_near(clip: Clip, feature: Sequence[float], captions: Sequence[str], n: int = 3) -> list[tuple[str, float]]:
    """The n different captions that lie nearest to a target feature, and their cosines."""
    texts = list(dict.fromkeys(c.strip() for c in captions if c.strip()))
    if not texts:
        return []
    cosines = (embed_texts(clip, texts).float().cpu() @ torch.tensor(feature)).tolist()
    return sorted(zip(texts, cosines), key=lambda pair: -pair[1])[:n]
