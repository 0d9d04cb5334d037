"""A model's card: what it says of the weights, and whether that still holds."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipvet import io
from clipvet.errors import UserError
from clipvet.types import Measured, Task


class Number(BaseModel):
    value: float
    n: int
    low: float
    high: float


class Card(BaseModel):
    """card.json, as far as it is checked."""

    model_config = ConfigDict(extra="allow")

    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    config_sha256: str = ""  # of configuration and tokenizer
    measured: dict[str, Number] = {}
    seed: int = 0
    half: str | None = None  # of the task's classes: base, beside which the new ones were measured too, or new
    task: dict[str, Any] = {}  # what `measured_on` says
    answer_key: str = ""  # seal of the answer key that was measured with


class Check(NamedTuple):
    metric: str
    said: Number
    found: Measured | None  # None: cannot be measured with what was given
    holds: bool


def read(folder: Path) -> Card:
    """Raises UserError where there is no card, or one that says nothing that can be checked."""
    path = folder / "card.json"
    try:
        return Card.model_validate(io.read_json(path))
    except ValidationError as e:
        at, why = ".".join(map(str, e.errors()[0]["loc"])) or "the whole", e.errors()[0]["msg"]
        raise UserError(f"{path} is no model's card ({at}: {why}); restore it") from e


def measured_on(task: Task | None, backdoor: Path | None) -> dict[str, Any]:
    """What a card says of its measured numbers: the task, and the answer key's seal."""
    out: dict[str, Any] = {}
    if task:
        classes = hashlib.sha256("\0".join(task.classes).encode()).hexdigest()[:16]
        out["task"] = {"name": task.name, "n": len(task.pictures), "fingerprint": task.pictures.fingerprint}
        out["task"]["classes"] = classes
    if backdoor and task:
        out["answer_key"] = seal(backdoor)
    return out


def seal(backdoor: Path) -> str:
    """Of an answer key; it follows the target, the trigger and every poison."""
    told = io.read_json(backdoor / "backdoor.json")
    return str(told.get("seal", "")) if isinstance(told, dict) else ""


def check_given(card: Card, task: Task, backdoor: Path | None, folder: Path) -> None:
    """UserError where task or answer key are not those that the card's numbers were measured with."""
    now = measured_on(task, None)["task"]
    if any(now.get(k) != v for k, v in card.task.items()):  # older cards say less
        raise UserError(
            f"the card of {folder} was measured on {str(card.task.get('name'))[:60]!r} ({card.task.get('n')}), "
            f"--task has others ({len(task.pictures)}); give the same task and classes"
        )
    if backdoor and card.answer_key and card.answer_key != seal(backdoor):
        raise UserError(f"{backdoor} is not the answer key that the card of {folder} was measured with; give that one")


def compare(card: Card, found: Mapping[str, Measured]) -> list[Check]:
    """Every number of the card: it holds if it was measured on as many and lies in the new 95 % interval."""
    out = []
    for metric, said in card.measured.items():
        m = found.get(metric)
        near = m is not None and said.n == m.n and (m.low <= said.value <= m.high or abs(said.value - m.value) < 1e-9)
        out.append(Check(metric, said, m, near))
    return out
