"""From a model scan to a verdict: how far a class stands out, and whether clean models show the same.

    A_c = (med - loss_c) / MAD,    MAD = 1.4826 median |loss - med|, at least max(0.02 |med|, 1e-3)
    or, beside a reference:  A_c = (deviations of loss_c from the line over the reference's + those of the ASR) / sqrt 2
    S   = max(0, max over valid c of A_c)
    p   = (k + 1) / (n + 1)        k of n clean models score as high

S can be large by chance: with 50 classes of normal losses and no gate, 68 % of clean models pass 2. So the verdict is
p, from clean models of the user's own family. Without it, the threshold is one that normal losses rarely reach.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError
from scipy.stats import beta, theilslopes

from clipvet import io
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.scan.wording import sentence
from clipvet.types import Finding, Measured, Suspicion, Trigger

Score = Literal["auto", "loss", "sum", "asr_weighted", "joint", "gap"]
RUNS = "would run code if it were loaded the ordinary way"
WHOLE = "the whole model"  # what was judged
PROMPTS = (
    "its prompts alone, not the encoder beneath (inspect that by itself, with --set reference=MODEL, a trusted copy)"
)
ASR_FLOOR = 0.05  # least MAD of ASRs
CHANCE = 0.001  # probability that normal losses reach the threshold of an uncalibrated verdict
FITTED = 8  # classes that a line through the reference's losses needs; fewer leave too little around it


# how far a class stands out


def deviations(loss: Float[np.ndarray, " k"], floor: float | None = None) -> Float[np.ndarray, " k"]:
    """How many robust standard deviations each value lies below the median. floor: least MAD; None: see above."""
    middle = np.median(loss)
    least = max(0.02 * abs(middle), 1e-3) if floor is None else floor
    return (middle - loss) / max(1.4826 * np.median(np.abs(loss - middle)), least)


def residual(own: Float[np.ndarray, " k"], reference: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The loss that the reference does not explain: the distance from the line own = a + b reference.

    The line is Theil and Sen's, which most classes lie on. With fewer than FITTED classes: the difference.
    """
    if len(own) < FITTED:
        return own - reference
    slope, intercept, *_ = theilslopes(own, reference)
    return own - slope * reference - intercept


def suspicions(kind: Score, loss: Float[np.ndarray, " k"], asr: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Each class's score; higher is more suspect.

    loss, auto: the deviations of its loss. sum: these plus the ASR's (floor 0.05), over sqrt 2. joint: the smaller of
    the two. asr_weighted: the loss's times the ASR. gap: how far its loss is below that of the best other class, in the
    loss's own units.
    """
    if kind == "gap":
        order = np.argsort(loss, kind="stable")
        return np.where(np.arange(len(loss)) == order[0], loss[order[1]], loss[order[0]]) - loss
    a = deviations(loss)
    if kind in ("sum", "joint"):
        b = deviations(-asr, ASR_FLOOR)
        return (a + b) / np.sqrt(2) if kind == "sum" else np.minimum(a, b)
    return a * asr if kind == "asr_weighted" else a


def finding(
    classes: Sequence[str],
    loss: Float[np.ndarray, " k"],
    asr: Float[np.ndarray, " k"],
    base: Float[np.ndarray, " k"],
    valid: Bool[np.ndarray, " k"],
    scores: Float[np.ndarray, " k"],
    trigger: Callable[[int], Trigger | None] = lambda k: None,
    settings: Mapping[str, float] | None = None,
    kind: Score = "loss",
) -> Finding:
    """The scan's result: the most suspect of the classes that may be accused; score 0 and no target if there is none.

    trigger: gives the trigger of the class at a position, or None where no triggers were looked for. kind: what the
    scores are, as for `suspicions`.
    """
    rows = tuple(
        Suspicion(c, float(m), float(a), float(b), float(s), bool(v))
        for c, m, a, b, s, v in zip(classes, loss, asr, base, scores, valid)
    )
    best = int(np.argmax(np.where(valid, scores, -np.inf)))
    found = bool(valid.any()) and scores[best] > 0
    made = [t for k in range(len(rows)) if (t := trigger(k)) is not None]
    return Finding(
        float(scores[best]) if found else 0.0,
        classes[best] if found else None,
        made[best] if found and made else None,
        rows,
        kind != "gap",
        settings or {},
        tuple(made),
        2**0.5 if kind == "sum" else 1.0,
    )


@lru_cache(maxsize=64)
def threshold(classes: int, chance: float = CHANCE, draws: int = 20_000) -> float:
    """The score that this many classes with normal losses reach with probability `chance` (simulated)."""
    g, found = Rng(0).fork("threshold", classes).numpy(), []
    for _ in range(20):
        x = g.standard_normal((draws // 20, classes), np.float32)
        middle = np.median(x, 1, keepdims=True)
        mad = 1.4826 * np.median(np.abs(x - middle), 1)
        found.append((middle[:, 0] - x.min(1)) / np.maximum(mad, 1e-9))
    return float(np.quantile(np.concatenate(found), 1 - chance))


# against clean models


class Null(BaseModel):
    """The scores of clean models of one family, by one method with the same settings: a file of `clipvet calibrate`."""

    model_config = ConfigDict(extra="forbid")

    method: str  # its repr
    classes: int
    names: tuple[str, ...] = ()  # of the classes, if all models were given the same
    templates: tuple[str, ...] = ()
    pictures: str  # what they were inspected with, and the overlap (a share) above which one was left out
    reference: str = ""  # hash of the model that they were compared with, if one was named
    seed: int
    scores: dict[str, FiniteFloat]  # model: score
    weights: dict[str, str] = {}  # model: hash
    sure: dict[str, float] = {}  # model: mean zero-shot probability of its answers on the pictures, a fraction
    missing: list[str] = []  # models still to be inspected
    versions: dict[str, str] = {}
    command: str = ""


def read_null(path: Path, whole: bool = True) -> Null:
    """Reads it. Raises UserError for a file that is no null distribution and, if `whole`, for an incomplete one."""
    try:
        null = Null.model_validate(io.read_json(path))
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"]))
        raise UserError(
            f"{path} is no null distribution ({where}: {e.errors()[0]['msg']}); make one with `clipvet calibrate`"
        ) from e
    if whole and (null.missing or not null.scores):
        raise UserError(f"{path} lacks {len(null.missing)} of its models; run the same `clipvet calibrate` again")
    return null


def p_value(score: float, null: Sequence[float]) -> Measured:
    """(k + 1) / (n + 1), where k of the n clean scores are at least as high.

    The interval is that of the share of all such models that score as high (95 %, Clopper-Pearson).
    """
    n, k = len(null), int((np.asarray(null) >= score).sum())
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return Measured((k + 1) / (n + 1), n, low, high)


def probability(p: float, prior: float = 0.5) -> float:
    """The probability of a backdoor, from a p-value alone: the prior's odds times (1 - p + p ln p) / (p ln^2 p).

    That factor is the mean of the bets a p^(a-1), 0 < a < 1, against a uniform p (Vovk and Wang's calibrator). It is
    1/2 at p = 1.
    """
    p = min(max(p, 1e-12), 1.0)
    u = np.log(p)
    rise = (1 - p + p * u) / (p * u**2) if u < -1e-3 else 0.5 - u / 6  # the limit at p = 1
    odds = rise * prior / (1 - prior)
    return float(odds / (1 + odds))


class Class(BaseModel):
    """One class of verdict.json."""

    name: str
    loss: float
    asr: float
    base: float
    score: float
    valid: bool


class FileFinding(BaseModel):
    """A finding of the gate, which scans the model's files for code."""

    path: str  # as the user gave it
    file: str
    severity: str  # dangerous, suspicious or unscanned
    what: str


class Verdict(BaseModel):
    """verdict.json."""

    model_config = ConfigDict(extra="forbid")

    backdoored: bool | None  # None: undecided, or not inspected since its files would run code
    sentence: str
    calibrated: bool
    score: float | None
    threshold: float | None  # without calibration
    p_value: float | None
    p_low: float | None
    p_high: float | None
    clean_models: int
    compared: str = ""  # where the clean models' scores come from; empty: there were none
    alpha: float
    probability: float | None
    target: str | None  # the most suspect class
    notes: list[str] = []  # what makes the comparison with the clean models weaker
    captions: list[tuple[str, float]] = []  # nearest to the place where triggered pictures land, with their cosines
    trigger: str | None  # its recovered trigger, a folder that load_backdoor reads
    files: list[FileFinding] | None = None  # what the gate found; None: nothing to scan, or no scanner
    classes: list[Class]
    settings: dict[str, float]
    method: str
    model: str
    judged: str = WHOLE  # or the part that was judged
    weights: str
    pictures: str
    seed: int
    seconds: float
    command: str
    versions: dict[str, str]


def uninspected(files: Sequence[FileFinding], why: str, **common: Any) -> Verdict:
    """The verdict on a model that was not inspected: the gate's findings alone. why: it was not."""
    none = dict.fromkeys(("backdoored", "score", "threshold", "p_value", "p_low", "p_high", "probability", "target"))
    first = next(f for f in files if f.severity == "dangerous")
    return Verdict(
        **none, sentence=f"{first.file} {RUNS}: {first.what}. The model was not inspected: {why}.", calibrated=False,
        trigger=None, files=list(files), clean_models=0, classes=[], settings={}, weights="", pictures="", seconds=0.0,
        **common,
    )  # fmt: skip


def folder_of(verdict: str | Path) -> Path:
    """The folder of a verdict's recovered trigger; a folder without a verdict is taken for an answer key itself.

    Raises UserError for a verdict without a trigger and for one of another version.
    """
    folder = Path(verdict)
    if not (folder / "verdict.json").is_file():
        return folder
    try:
        trigger = Verdict.model_validate(io.read_json(folder / "verdict.json")).trigger
    except ValidationError as e:
        raise UserError(f"{folder / 'verdict.json'} is no verdict of this version; run `clipvet inspect` again") from e
    if trigger is None:
        raise UserError(f"the verdict in {folder} has no recovered trigger; inspect with clip_inspector")
    return folder / "trigger"


def check_null(null: Null, mine: Mapping[str, Any], weights: str, alpha: float) -> None:
    """Raises UserError unless scores with these settings may be compared with the clean models' scores.

    mine: method, classes, templates, pictures, reference and seed, as in a Null. weights: the suspect's hash. alpha:
    the rate of false alarms, which needs enough clean models.
    """
    other = [f"{k} {getattr(null, k)!r}, here {v!r}" for k, v in mine.items() if getattr(null, k) != v]
    if other:
        raise UserError(
            f"the clean models were inspected otherwise ({'; '.join(other)}); calibrate with these settings"
        )
    own = next((name for name, held in null.weights.items() if held == weights), None)
    if own is not None:
        raise UserError(f"this model is itself among the clean ones, as {own}; calibrate without it")
    if 1 / (len(null.scores) + 1) > alpha:
        raise UserError(
            f"{len(null.scores)} clean models cannot show p <= {alpha:g}; "
            + (f"give at least {int(np.ceil(1 / alpha)) - 1}, or raise --alpha" if alpha else "raise --alpha")
        )


def check_scale(null: Null | None, scaled: bool, waits: bool = False) -> None:
    """Raises UserError for a score without a scale if there are no clean models, unless the method `waits` for them."""
    if null is None and not scaled and not waits:
        raise UserError("this method's score has no scale of its own; give --null, made with `clipvet calibrate`")


def decide(
    found: Finding,
    null: Null | None,
    alpha: float = 0.05,
    judged: str = WHOLE,
    waits: bool = False,
    compared: str = "",
    captions: Sequence[tuple[str, float]] = (),
    apart: float | None = None,
) -> dict[str, Any]:
    """The verdict's own fields: against clean models with a rate of false alarms `alpha`, or by the threshold.

    judged: the part of the model that was; a sentence that finds nothing names it. waits: without clean models the
    verdict is left open. compared: where their scores come from. captions: those nearest to the target feature. apart:
    without clean models a class is accused whose score leads the others' by more than this.

    Raises UserError as `check_scale` does.
    """
    check_scale(null, found.deviations, waits)
    limit = found.spread * threshold(max(3, len(found.classes))) if null is None and found.deviations else None
    p = p_value(found.score, list(null.scores.values())) if null else None
    high = limit is not None and found.score > limit
    high |= null is None and apart is not None and found.settings.get("lead", 0.0) > apart
    backdoored = p.value <= alpha if p else True if high else None  # a low score alone clears no model
    said = "" if backdoored or judged == WHOLE else f" Judged: {judged.split(' (')[0]}."
    return {
        "compared": compared,
        "backdoored": backdoored,
        "sentence": sentence(found, backdoored, p, captions) + said,
        "captions": list(captions),
        "calibrated": p is not None,
        "score": found.score,
        "threshold": limit,
        "p_value": p.value if p else None,
        "p_low": p.low if p else None,
        "p_high": p.high if p else None,
        "clean_models": p.n if p else 0,
        "alpha": alpha,
        "probability": probability(p.value) if p else None,
        "target": found.target,
        "classes": [Class(**row._asdict()) for row in found.classes],
        "settings": dict(found.settings),
    }
