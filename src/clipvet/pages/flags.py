"""The page of `clipvet detect`: the most suspect pictures, the threshold, and the false alarms that it promises.

A new section of the page is a value in `write_page`, and its HTML in templates/detect.html.jinja.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clipvet.pages._page import SMALL, picture, write_html
from clipvet.pages.suspects import Suspects, charts
from clipvet.scan.conformal import Promise
from clipvet.types import Geometry, Measured, Pairs


def write_page(
    out: Path,
    found: Suspects,
    pairs: Pairs,
    geometry: Geometry,
    facts: Mapping[str, Any],
    *,
    files: Sequence[str],
    told: Sequence[str],
    triggered: Bool[np.ndarray, " n"] | None = None,
    promise: Promise | None = None,
    measured: Mapping[str, Measured] | None = None,
    p: Float[np.ndarray, " n"] | None = None,
    flagged: Bool[np.ndarray, " n"] | None = None,
    top: int = 48,
) -> None:
    """Writes the page: all flagged pictures, at least as far as `top`, and the histogram of all scores.

    facts: method, model, data, trusted, command, versions and seconds. files, p, flagged: of each row of `found`. told:
    what follows, in words. triggered: which of `pairs` are copies that the answer key stamped, in the pairs' order.
    """
    shown = min(top, found.scored)
    images = pairs.at(geometry)[found.positions[:shown]].images if shown else []
    copies = None if triggered is None else triggered[found.positions]
    entries = [
        {
            "picture": picture(image),
            "file": files[k],
            "rank": k + 1,
            "score": float(found.scores[k]),
            "answer": found.captions[k],
            "reason": found.reasons[k],
            "p": None if p is None else float(p[k]),
            "said": "" if p is None else in_words(float(p[k]), promise),
            "flagged": flagged is not None and bool(flagged[k]),
            "triggered": copies is not None and bool(copies[k]),
        }
        for k, image in enumerate(images)
    ]
    write_html(
        out,
        "detect",
        entries=entries,
        charts=charts(found.scores, copies, promise.threshold if promise else None),
        facts=facts,
        measured=measured or {},
        told=told,
        promise=promise,
        pictures=len(found.ids),
        unscored=len(found.ids) - found.scored,
        small=geometry.size < SMALL,
    )


def in_words(p: float, promise: Promise | None) -> str:
    """What a p-value says about one picture."""
    if promise is None:
        return f"p = {p:.2g}"
    above = round(p * (promise.clean + 1)) - 1
    many = "none scores" if above == 0 else "one scores" if above == 1 else f"{above} score"
    return f"of {promise.clean} trusted pictures {many} as high (p = {p:.2g})"
