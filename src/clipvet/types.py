"""The nouns of clipvet. Read this file first.

Two maps and three arrows hold the whole of it:

    stamp: picture -> picture            poison: pairs -> pairs
    implant, clean, train: (clip, pairs) -> clip
    score, inspect, detect: (clip, data) -> suspicion
    measure: (clip, task) -> {name: number}

Conventions: pictures are float tensors (b, 3, h, w) with pixels in [0, 1]; embeddings have unit length; rates are
fractions; times are seconds. Geometry (resize, crop) comes first, then the trigger, then normalisation, in training
and in evaluation alike. A method is a frozen dataclass with one verb; it never mutates what it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipvet.rng import Rng


@dataclass(frozen=True)
class Geometry:
    """How a picture of any shape becomes (3, size, size). `mode`: shortest (resize, centre crop) or squash."""

    size: int
    mode: str = "shortest"
    interpolation: str = "bicubic"


@runtime_checkable
class Clip(Protocol):
    """A model that links pictures and text. Normalisation and tokenisation live inside; geometry is separate.

    Every Clip is also a torch.nn.Module. `adapter.OpenClip` is the adapter over open_clip.
    """

    geometry: Geometry

    @property
    def mean(self) -> Float[Tensor, "3 1 1"]:
        """The colour that normalises to zero, pixels in [0, 1]."""
        ...

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The inverse temperature itself (already exponentiated), with gradient."""
        ...

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "b l"]: ...

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit-length embeddings of pictures with pixels in [0, 1]."""
        ...

    def encode_text(self, captions: Sequence[str] | Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit-length embeddings of captions, given as strings or as tokens from `tokenize`."""
        ...


class Batch(NamedTuple):
    """Rows of `Pairs`. `bad` lists (id, reason) of rows whose picture could not be read; they are not in the rest."""

    images: Float[Tensor, "b 3 h w"]  # pixels in [0, 1]
    captions: list[str]
    ids: Int[Tensor, " b"]
    bad: tuple[tuple[int, str], ...] = ()
    tokens: Int[Tensor, "b l"] | None = None  # of the captions, filled in by the training loop's loader

    def take(self, at: np.ndarray) -> "Batch":
        """Some of its rows, by position."""
        tokens = None if self.tokens is None else self.tokens[at]
        return Batch(self.images[at], [self.captions[k] for k in at], self.ids[at], (), tokens)


@runtime_checkable
class Pictures(Protocol):
    """Where pixels come from: rendered tensors or files."""

    def __len__(self) -> int: ...

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """Readable rows, in order, as float (n, 3, h, w) in [0, 1], and (position in `rows`, reason) of the others."""
        ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures with captions and stable ids. Lazy: nothing is decoded before it is asked for. Carries no poison flag.

    captions: any sequence of strings, one a row. rows: which rows of the source, in which order; ids are the source's
    row numbers and survive `take`. maps: applied in order to every batch.
    """

    pictures: Pictures
    captions: Sequence[str]
    rows: np.ndarray  # (n,) int64
    geometry: Geometry | None = None
    maps: tuple[Callable[[Batch], Batch], ...] = ()
    name: str = "pairs"  # what it is, for cards and result rows
    workers: int = 0  # loader processes worth having (0: pixels lie in memory)
    fingerprint: str = ""  # hash of the content that the source was opened with

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Sequence[int] | np.ndarray | slice) -> Batch:
        rows = np.atleast_1d(self.rows[index])
        images, bad = self.pictures.fetch([int(r) for r in rows], self.geometry)
        lost = {position for position, _ in bad}
        good = [int(r) for p, r in enumerate(rows) if p not in lost]
        reasons = tuple((int(rows[p]), why) for p, why in bad)
        batch = Batch(images, [self.captions[r] for r in good], torch.tensor(good, dtype=torch.int64), reasons)
        for f in self.maps:
            batch = f(batch)
        return batch

    @property
    def ids(self) -> np.ndarray:
        """Stable ids, shape (n,) int64: the source's row numbers."""
        return self.rows

    def caption(self, row_id: int | np.integer) -> str:
        """The source's own caption of the row with this id, before any map."""
        return self.captions[int(row_id)]

    def take(self, which: np.ndarray | slice) -> "Pairs":
        """The rows chosen by a boolean mask, positions or a slice; ids stay."""
        return replace(self, rows=self.rows[which])

    def map(self, f: Callable[[Batch], Batch]) -> "Pairs":
        return replace(self, maps=(*self.maps, f))

    def at(self, geometry: Geometry) -> "Pairs":
        """The same pairs, delivered at another size or resize mode."""
        return replace(self, geometry=geometry)


@dataclass(frozen=True, eq=False)
class Task:
    """A zero-shot classification task: labelled pictures, class names and caption templates with `{}`.

    Where `pictures` has captions (the embedded world, a caption file), retrieval can be measured on it too.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    pictures: Pairs
    labels: np.ndarray  # (n,) int64, aligned with the pictures' rows

    def captions_of(self, label: int) -> list[str]:
        return [t.replace("{}", self.classes[label]) for t in self.templates]

    def only(self, classes: Sequence[str]) -> "Task":
        """The same task with some of its classes. Raises ValueError where one is none of its own."""
        chosen = [self.classes.index(c) for c in classes]
        at = np.flatnonzero(np.isin(self.labels, chosen))
        labels = np.array([chosen.index(int(y)) for y in self.labels[at]], dtype=np.int64)
        return replace(self, classes=tuple(classes), pictures=self.pictures.take(at), labels=labels)


@runtime_checkable
class Trigger(Protocol):
    """What the attacker puts into a picture. Knows no data set and no target."""

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Triggered copies, pixels in [0, 1]. A picture's result depends on that picture and its key alone."""
        ...


@dataclass(frozen=True, eq=False)
class Backdoor:
    """The answer key: trigger, target class, poisoned ids. Only measures ever receive it.

    A poison is a pair of the source, stamped and captioned anew (its id is its row); or such a pair with the picture of
    another row; or a copy, appended to the source under a new id: of a chosen picture under a new caption (targeted
    poisoning; the picture's own pair is taken out), or, where none are chosen, stamped and beside its own pair.
    `poisoned` and `captions` list all poisons, those of `more` too, which tells whose they are.
    """

    trigger: Trigger | None  # None: pictures stay as they are
    target: str
    poisoned: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # ids
    captions: tuple[str, ...] = ()  # the new captions, aligned with `poisoned`
    seed: int = 0  # key of the trigger's per-picture draws
    rows: np.ndarray | None = None  # source rows of the poisons' pictures, aligned with `poisoned`; None: the ids
    pictures: Float[Tensor, "k 3 h w"] | None = None  # the chosen pictures of targeted poisoning, pixels in [0, 1]
    classes: tuple[str, ...] = ()  # what each of them shall be called
    ties: tuple[tuple[str, str], ...] = ()  # (A, B): captions of class A are tied to pictures of class B
    says: str = ""  # the caption key, put before the captions of poisons and before prompts
    bare: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # poisons whose picture is not stamped
    more: tuple["Backdoor", ...] = ()  # further triggers, with targets and poisons of their own, in the same data
    data: str = ""  # fingerprint of the user's pairs that it poisons; empty: of an embedded world, or made by hand

    def stamp(self, images: Tensor, ids: Tensor) -> Tensor:
        """Triggered copies of pictures with these ids; fresh-noise triggers draw from (seed, id)."""
        if self.trigger is None:
            return images
        return self.trigger.stamp(images, Rng(self.seed).keys(ids.tolist()).to(images.device))


class Implanted(NamedTuple):
    clip: Clip
    pairs: Pairs  # the dirty pairs
    backdoor: Backdoor


class Suspicion(NamedTuple):
    """One class in a model scan."""

    name: str
    loss: float  # what its trigger cost; lower = easier than other classes
    asr: float  # share of the pictures that are this class under its trigger
    base: float  # and without it
    score: float  # how far it stands out from the other classes; higher = more suspect
    valid: bool  # whether it may be accused


class Finding(NamedTuple):
    """Result of a model scan: score (higher = more suspect), the suspected class and the recovered trigger, if any."""

    score: float
    target: str | None = None
    trigger: Trigger | None = None
    classes: tuple[Suspicion, ...] = ()
    deviations: bool = False  # the score counts robust standard deviations of the other classes
    settings: Mapping[str, float] = {}  # pictures, updates ... that went into it
    triggers: tuple[Trigger, ...] = ()  # of every class, aligned with `classes`, where the method looks for each
    spread: float = 1.0  # of the score at most, where one deviation is chance: a sum of two that move together has more


class Measured(NamedTuple):
    """One number with its sample size and 95 % interval."""

    value: float
    n: int
    low: float
    high: float


@runtime_checkable
class Attack(Protocol):
    needs: ClassVar[str]

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted: ...


@runtime_checkable
class Training(Protocol):
    needs: ClassVar[str]

    def train(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip: ...


@runtime_checkable
class Filter(Protocol):
    """Which pairs are poisoned? A filter may also have two things that only the printed page uses:

    phrase: ClassVar[str], why a pair is suspect, formatted with `score`, `minus` (the score's negative) and the fields;
    cut(scores) -> float, its own threshold: what scores higher is thrown out.
    """

    needs: ClassVar[str]

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        """Suspicion, higher = more suspect, aligned with `pairs.ids`; NaN where the picture could not be read."""
        ...


@runtime_checkable
class Inspector(Protocol):
    """Is this model backdoored? `classes` are what it may be made to answer; `pictures` need no labels.

    One whose score means nothing without clean models to compare with says `scaled = False`; one that looks at a part
    of the model says in `judges` which.
    """

    needs: ClassVar[str]

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding: ...


@runtime_checkable
class Detector(Protocol):
    """Does this picture carry a trigger? For a model in use: pictures come one by one, and have no labels.

    A detector may also have a `phrase`, as a Filter.
    """

    needs: ClassVar[str]

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """Suspicion, higher = more suspect, aligned with `pictures.ids`; NaN where the picture could not be read."""
        ...


@runtime_checkable
class Cleaner(Protocol):
    needs: ClassVar[str]

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip: ...


@runtime_checkable
class Measure(Protocol):
    needs: ClassVar[str]

    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> Mapping[str, Measured]: ...
