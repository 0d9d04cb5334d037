"""The answer key of an attack on disk: which pairs are poisoned, and how. A checksum shows whether it was changed.

folder/backdoor.json        the card: target, trigger and its fields, seed, number of poisons, checksum ("seal")
folder/manifest.parquet     one row for each poison: id, row of its picture, caption, trigger, seed
folder/probe.safetensors    a test picture with the trigger on it; the chosen pictures of targeted poisoning
folder/trigger.safetensors  the tensor fields of a crafted trigger, if it has any
folder/more/0, 1 ...        the answer keys of further triggers in the same data; the manifest lists their poisons too
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from clipvet import find, io
from clipvet.data.table_checks import unfolded
from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Backdoor, Trigger

MOST = 2**29  # bytes of a manifest in memory: enough for some millions of poisons
MOST_TEXT = 1000  # characters of a trigger's field: a text of millions takes hours to draw
MOST_MORE = 1000  # further triggers
KINDS = {"id": pa.int64(), "row": pa.int64(), "caption": pa.string(), "trigger": pa.string(), "seed": pa.int64()}
SCHEMA = pa.schema(KINDS)  # of the manifest


class Card(BaseModel):
    """The content of backdoor.json. A card with other fields is refused."""

    model_config = ConfigDict(extra="forbid")

    target: str
    trigger: str  # file name in triggers/; empty: pictures stay as they are
    fields: dict[str, Any]  # of the trigger, but for tensors
    seed: int
    poisons: int  # how many
    classes: list[str]  # of targeted poisoning: the class that each chosen picture shall be taken for
    ties: list[tuple[str, str]] = []  # (A, B): captions of class A are tied to pictures of class B
    says: str = ""  # the words that a text trigger puts before captions and prompts
    data: str = ""  # fingerprint of the user's pairs; empty for an embedded world, and for a key made by hand
    more: list[str] = []  # the seals of the answer keys in more/
    seal: str  # SHA-256 of the rest of the card, of manifest.parquet and trigger.safetensors
    pixels: str = "[0, 1], after geometry, before normalisation"


def probe(trigger: Trigger | None) -> Float[Tensor, "1 3 32 32"]:
    """A ramp of all tones from 0 to 1 with the trigger on it. If it differs, so does the trigger."""
    ramp = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    return trigger.stamp(ramp, Rng(0).keys([0])) if trigger else ramp


def _seal(card: Card, folder: Path) -> str:
    """SHA-256 of all that a card says, and of the files beside it that make poisons and triggers."""
    files = [p for name in ("manifest.parquet", "trigger.safetensors") if (p := folder / name).exists()]
    told = json.dumps([card.model_dump(exclude={"seal"}), *map(io.sha256, files)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()


def _name(trigger: Trigger | None) -> str:
    return type(trigger).__module__.rsplit(".", 1)[-1] if trigger else ""


def _stamped(backdoor: Backdoor) -> tuple[list[str], list[int]]:
    """The name of each poison's trigger (empty for poisons without a trigger), and the key of its random draws."""
    theirs = {int(i): part for part in backdoor.more for i in part.poisoned}
    bare = {int(i) for part in (backdoor, *backdoor.more) for i in part.bare}
    parts = [(theirs.get(int(i), backdoor), int(i)) for i in backdoor.poisoned]
    names = ["" if i in bare else _name(part.trigger) for part, i in parts]
    return names, [int(Rng(part.seed).keys([i])) for part, i in parts]


def save_backdoor(backdoor: Backdoor, folder: Path) -> None:
    """Write an answer key, with those of further triggers, into a folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(backdoor.more):
        save_backdoor(part, folder / "more" / str(k))
    trigger: Any = backdoor.trigger
    values = {f.name: getattr(trigger, f.name) for f in dataclasses.fields(trigger)} if trigger else {}
    tensors = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    rows = backdoor.poisoned if backdoor.rows is None else backdoor.rows
    names, keys = _stamped(backdoor)
    table = {
        "id": backdoor.poisoned,
        "row": rows,
        "caption": list(backdoor.captions),
        "trigger": names,
        "seed": np.array(keys, dtype=np.int64),
    }
    pq.write_table(pa.table(table), folder / "manifest.parquet")
    if tensors:
        io.save_weights(tensors, folder / "trigger.safetensors")
    more = [io.read_json(folder / "more" / str(k) / "backdoor.json")["seal"] for k in range(len(backdoor.more))]
    card = Card(
        target=backdoor.target,
        trigger=_name(trigger),
        fields={k: v for k, v in values.items() if k not in tensors},
        seed=backdoor.seed,
        poisons=len(backdoor.poisoned),
        classes=list(backdoor.classes),
        ties=list(backdoor.ties),
        says=backdoor.says,
        data=backdoor.data,
        more=more,
        seal="",
    )
    card.seal = _seal(card, folder)
    chosen = {} if backdoor.pictures is None else {"pictures": (backdoor.pictures * 255).round().to(torch.uint8)}
    io.save_weights({"stamped": probe(trigger), **chosen}, folder / "probe.safetensors")
    io.write_json(folder / "backdoor.json", card.model_dump())


def _read(manifest: Path, poisons: int) -> pa.Table:
    """The manifest, batch by batch, as a small file may unfold to gigabytes.

    Raises ValueError if it has another number of rows than `poisons`, or takes more than MOST bytes in memory.
    """
    with pq.ParquetFile(manifest, read_dictionary=["caption", "trigger"]) as held:
        if held.metadata.num_rows != poisons:
            raise ValueError(f"{held.metadata.num_rows} rows where {poisons} are told of")
        groups = (held.metadata.row_group(k).total_byte_size for k in range(held.metadata.num_row_groups))
        if sum(groups) > MOST:  # a single caption may be this large
            raise ValueError(f"it holds more than {MOST:,} bytes")
        batches, size = [], 0
        for batch in held.iter_batches(2**16, columns=SCHEMA.names):
            batch.validate(full=True)
            size += sum(map(unfolded, batch.columns))
            if size > MOST:
                raise ValueError(f"it unfolds to more than {MOST:,} bytes")
            batches.append(batch.select(SCHEMA.names).cast(SCHEMA))
        return pa.Table.from_batches(batches, SCHEMA)


def load_backdoor(folder: Path, nested: bool = False) -> Backdoor:
    """Read an answer key that `save_backdoor` wrote.

    nested: it belongs to one of another key's further triggers, and may have no further ones itself. Raises UserError
    if a file is unreadable or has been changed, and if the trigger no longer stamps what it once stamped.
    """
    path, manifest = folder / "backdoor.json", folder / "manifest.parquet"
    told = io.read_json(path)
    try:
        card = Card.model_validate(told)
        json.dumps(told, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise UserError(f"{path} holds half a surrogate pair, which is no text; restore it") from e
    except ValidationError as e:
        raise UserError(f"{path} is not a backdoor card ({e.errors()[0]['loc']}: {e.errors()[0]['msg']})") from e
    if len(card.more) > (0 if nested else MOST_MORE):
        raise UserError(f"{path} tells of {len(card.more)} further triggers, too many or too deep; restore it")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in card.fields.items()}
    if (folder / "trigger.safetensors").exists():
        fields |= io.load_weights(folder / "trigger.safetensors")
    try:
        if any(isinstance(v, str) and len(v) > MOST_TEXT for v in fields.values()):
            raise ValueError(f"a text of more than {MOST_TEXT} characters")
        trigger = find.load("triggers", card.trigger)(**fields) if card.trigger else None
        now = probe(trigger)
    except UserError:
        raise
    except Exception as e:  # an untrusted card's fields can be anything
        why = f"{type(e).__name__}: {io.line(e)}"
        raise UserError(f"{path}: trigger {card.trigger} does not take these fields ({why}); restore it") from e
    held = io.load_weights(folder / "probe.safetensors")
    planted, chosen = held.get("stamped", torch.empty(0)), held.get("pictures")
    if planted.shape != now.shape or not torch.allclose(planted, now, rtol=0, atol=1 / 255):  # processors round apart
        raise UserError(
            f"{path}: this trigger no longer stamps what was planted; use the clipvet version that wrote it"
        )
    try:
        if not manifest.is_file():  # a pipe would never end
            raise FileNotFoundError("no such file")
        table = _read(manifest, card.poisons)
        ids, rows = (np.asarray(table[column], dtype=np.int64) for column in ("id", "row"))
        captions = tuple(table["caption"].to_pylist())
        if None in captions:
            raise ValueError("a poison has no caption")
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as e:
        raise UserError(f"{manifest} cannot be read ({io.line(e)}); restore it") from e
    parts = tuple(load_backdoor(folder / "more" / str(k), nested=True) for k in range(len(card.more)))
    seals = [io.read_json(folder / "more" / str(k) / "backdoor.json")["seal"] for k in range(len(parts))]
    if len(card.classes) != (0 if chosen is None else len(chosen)):
        raise UserError(f"{path} names {len(card.classes)} classes for another number of pictures; restore both files")
    pictures = None if chosen is None else chosen.float() / 255
    theirs = np.concatenate([np.zeros(0, np.int64), *(part.poisoned for part in parts)])
    bare = np.setdiff1d(ids[[name == "" for name in table["trigger"].to_pylist()]], theirs if trigger else ids)
    told = tuple(card.classes), tuple(card.ties), card.says, bare, parts, card.data
    key = Backdoor(trigger, card.target, ids, captions, card.seed, rows, pictures, *told)
    if card.more != seals or _seal(card, folder) != card.seal or table["seed"].to_pylist() != _stamped(key)[1]:
        raise UserError(f"{manifest} is not the one that {path} was written with; restore both files")
    return key
