"""A model's card: what it says about the weights, and whether that is still true."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipvet import io
from clipvet.errors import UserError
from clipvet.types import Measured, Task


class Number(BaseModel):
    """One measured number, with its sample size and 95 % interval."""

    value: float
    n: int
    low: float
    high: float


class Card(BaseModel):
    """The parts of card.json that are checked. A card may say more."""

    model_config = ConfigDict(extra="allow")

    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    config_sha256: str = ""  # of the files that say how the weights are used (`weights.config_hash`)
    measured: dict[str, Number] = {}
    seed: int = 0
    half: str | None = None  # of the task's classes: base (numbers named new_... are of the other half) or new
    task: dict[str, Any] = {}  # what the numbers were measured on (`measured_on`)
    answer_key: str = ""  # seal of the answer key that they were measured with


class Check(NamedTuple):
    """One number of a card, beside the number measured now."""

    metric: str
    said: Number
    found: Measured | None  # None: it cannot be measured with the given task and answer key
    holds: bool


def read(folder: Path) -> Card:
    """The card of a model's folder. Raises UserError if there is none, or if it is not a model's card."""
    path = folder / "card.json"
    try:
        return Card.model_validate(io.read_json(path))
    except ValidationError as e:
        at, why = ".".join(map(str, e.errors()[0]["loc"])) or "the whole file", e.errors()[0]["msg"]
        raise UserError(f"{path} is no model's card ({at}: {why}); restore it") from e


def measured_on(task: Task | None, backdoor: Path | None) -> dict[str, Any]:
    """What a card says about the conditions of its numbers: the task, and the seal of the answer key."""
    out: dict[str, Any] = {}
    if task:
        classes = hashlib.sha256("\0".join(task.classes).encode()).hexdigest()[:16]
        out["task"] = {"name": task.name, "n": len(task.pictures), "fingerprint": task.pictures.fingerprint}
        out["task"]["classes"] = classes
    if backdoor and task:
        out["answer_key"] = seal(backdoor)
    return out


def seal(backdoor: Path) -> str:
    """The seal of an answer key: a hash over target, trigger and all poisons. Empty if its folder has none."""
    told = io.read_json(backdoor / "backdoor.json")
    return str(told.get("seal", "")) if isinstance(told, dict) else ""


def check_given(card: Card, task: Task, backdoor: Path | None, folder: Path) -> None:
    """Raises UserError unless task and answer key are those that the card's numbers were measured with."""
    now = measured_on(task, None)["task"]
    if any(now.get(k) != v for k, v in card.task.items()):  # older cards say less
        raise UserError(
            f"the card of {folder} was measured on {str(card.task.get('name'))[:60]!r} ({card.task.get('n')}), "
            f"--task has others ({len(task.pictures)}); give the same task and classes"
        )
    if backdoor and card.answer_key and card.answer_key != seal(backdoor):
        raise UserError(f"{backdoor} is not the answer key that the card of {folder} was measured with; give that one")


def compare(card: Card, found: Mapping[str, Measured]) -> list[Check]:
    """Checks every number of the card. It holds if n is the same and it lies in the 95 % interval measured now."""
    out = []
    for metric, said in card.measured.items():
        m = found.get(metric)
        near = m is not None and said.n == m.n and (m.low <= said.value <= m.high or abs(said.value - m.value) < 1e-9)
        out.append(Check(metric, said, m, near))
    return out
