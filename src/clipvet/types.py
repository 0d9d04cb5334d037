"""The nouns of clipvet, and the verb of every family of methods. Read this file first.

    Clip        a model that links pictures and text
    Pairs       pictures with captions, for example the training data of a model
    Task        labelled test pictures and class names, to measure zero-shot accuracy on
    Trigger     a change to a picture that switches a backdoor on
    Backdoor    the answer key of an attack: trigger, target and which pairs are poisoned
    Finding     what an inspector says about a model
    Measured    one number with its sample size and 95 % interval

A method is a frozen dataclass. Its fields are its settings, and it has one verb:

    folder        verb      from                                         makes
    triggers/     stamp     pictures                                     pictures with the trigger
    attacks/      implant   a clean model, clean pairs, a target class   backdoored model, poisoned pairs, answer key
    training/     train     a fresh model, pairs nobody has checked      a trained model
    filters/      score     a model, pairs                               a suspicion for each pair
    inspectors/   inspect   a model, pictures, class names               a Finding
    detectors/    detect    a model, pictures, class names               a suspicion for each picture
    cleaners/     clean     a model, pairs                               a cleaned model
    measures/     measure   a model, a task, the answer key              {name: Measured}

What holds everywhere:

- Pictures are float tensors (b, 3, h, w) with pixels in [0, 1]. Embeddings are float tensors (b, d) of length 1.
- Rates are fractions, never percent. Times are in seconds. A higher score or suspicion means more suspect.
- First a picture is resized, then the trigger is stamped, then the model normalises the pixels; in training and tests.
- A method never changes what it is given, and draws random numbers from `rng` alone. Its `needs` say what a user must
  have: "clean pairs", "weights only" ...
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
    """How a picture of any shape becomes one of shape (3, size, size)."""

    size: int  # pixels a side
    mode: str = "shortest"  # shortest: resize the shorter side, crop the centre; squash: resize both sides
    interpolation: str = "bicubic"  # or bilinear; random (a word of open_clip's configs) means bicubic here
    library: str = "open_clip"  # whose steps: open_clip's, or transformers', which rounds and crops in another way


@runtime_checkable
class Clip(Protocol):
    """A model that links pictures and text. Most are a `models.adapter.OpenClip`; all are a torch.nn.Module.

    The model normalises pixels and tokenises captions itself. Pictures are resized before, as `geometry` says.
    """

    geometry: Geometry

    @property
    def mean(self) -> Float[Tensor, "3 1 1"]:
        """The mean colour that normalisation subtracts, in [0, 1]."""
        ...

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The factor on cosines before the softmax (the inverse temperature, not its logarithm), with gradient."""
        ...

    def tokenize(self, captions: Sequence[str]) -> Int[Tensor, "b l"]:
        """One row of token ids for each caption, padded or cut to the model's context length."""
        ...

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings of length 1, of pictures with pixels in [0, 1]."""
        ...

    def encode_text(self, captions: Sequence[str] | Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Embeddings of length 1, of captions given as strings or as tokens from `tokenize`."""
        ...


class Batch(NamedTuple):
    """Some rows of `Pairs`, decoded. Rows that cannot be used are listed in `bad` and nowhere else."""

    images: Float[Tensor, "b 3 h w"]  # pixels in [0, 1]
    captions: list[str]
    ids: Int[Tensor, " b"]
    bad: tuple[tuple[int, str], ...] = ()  # (id, reason)
    tokens: Int[Tensor, "b l"] | None = None  # of the captions; the training loop's loader fills them in

    def take(self, at: np.ndarray) -> "Batch":
        """The rows at these positions."""
        tokens = None if self.tokens is None else self.tokens[at]
        return Batch(self.images[at], [self.captions[k] for k in at], self.ids[at], (), tokens)


@runtime_checkable
class Pictures(Protocol):
    """Where pixels come from: files, or a world that draws them."""

    def __len__(self) -> int: ...

    def fetch(self, rows: Sequence[int], geometry: Geometry | None) -> tuple[Tensor, list[tuple[int, str]]]:
        """The rows that can be read, in order, as float (n, 3, h, w) in [0, 1]; (position, reason) of the others."""
        ...


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures with captions. Nothing is decoded before it is asked for: `pairs[3:7]` decodes four rows.

    A row's id is its row number in the source. It stays when rows are taken out or reordered. Pairs do not know which
    of them are poisoned; only a `Backdoor` does.
    """

    pictures: Pictures
    captions: Sequence[str]  # of the whole source, one for each of its rows
    rows: np.ndarray  # (n,) int64: which rows of the source these are, in which order
    geometry: Geometry | None = None  # how pictures are resized; None: they have one size already
    maps: tuple[Callable[[Batch], Batch], ...] = ()  # applied to every batch, in order
    last: tuple[Callable[[Batch], Batch], ...] = ()  # applied after all maps: leaves out empty captions, say
    name: str = "pairs"  # for cards and result rows
    workers: int = 0  # loader processes worth having; 0: the pixels lie in memory
    fingerprint: str = ""  # hash of the source's content when it was opened

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Sequence[int] | np.ndarray | slice) -> Batch:
        rows = np.atleast_1d(self.rows[index])
        images, bad = self.pictures.fetch([int(r) for r in rows], self.geometry)
        lost = {position for position, _ in bad}
        good = [int(r) for p, r in enumerate(rows) if p not in lost]
        reasons = tuple((int(rows[p]), why) for p, why in bad)
        batch = Batch(images, [self.captions[r] for r in good], torch.tensor(good, dtype=torch.int64), reasons)
        for f in (*self.maps, *self.last):
            batch = f(batch)
        return batch

    @property
    def ids(self) -> np.ndarray:
        """The ids, shape (n,) int64: row numbers in the source."""
        return self.rows

    def caption(self, row_id: int | np.integer) -> str:
        """The source's caption of the row with this id, before any map."""
        return self.captions[int(row_id)]

    def take(self, which: np.ndarray | slice) -> "Pairs":
        """The rows that a boolean mask, positions or a slice choose. Their ids stay."""
        return replace(self, rows=self.rows[which])

    def map(self, f: Callable[[Batch], Batch]) -> "Pairs":
        """The same pairs with `f` applied to every batch, after the maps that are there already."""
        return replace(self, maps=(*self.maps, f))

    def at(self, geometry: Geometry) -> "Pairs":
        """The same pairs, resized in another way."""
        return replace(self, geometry=geometry)


@dataclass(frozen=True, eq=False)
class Task:
    """A zero-shot classification task: labelled pictures, class names and templates.

    If the pictures have captions (as the built-in world has), retrieval is measured on them too.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]  # such as "a photo of a {}."
    pictures: Pairs
    labels: np.ndarray  # (n,) int64: positions in `classes`, one for each picture

    def captions_of(self, label: int) -> list[str]:
        """The class prompts of one class: its name in every template."""
        return [t.replace("{}", self.classes[label]) for t in self.templates]

    def only(self, classes: Sequence[str]) -> "Task":
        """The same task with these of its classes alone. Raises ValueError if it has no such class."""
        chosen = [self.classes.index(c) for c in classes]
        at = np.flatnonzero(np.isin(self.labels, chosen))
        labels = np.array([chosen.index(int(y)) for y in self.labels[at]], dtype=np.int64)
        return replace(self, classes=tuple(classes), pictures=self.pictures.take(at), labels=labels)


@runtime_checkable
class Trigger(Protocol):
    """What the attacker puts into a picture. It knows no data set and no target class."""

    def stamp(self, images: Float[Tensor, "b 3 h w"], keys: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """Copies with the trigger, pixels in [0, 1]. Each depends on its own picture and key (`Rng.keys`) alone."""
        ...


@dataclass(frozen=True, eq=False)
class Backdoor:
    """The answer key of an attack: trigger, target class and poisoned ids. Only measures ever get it.

    A poison is a pair of the source, under its old id, with a new caption and the trigger on its picture, or on another
    row's. Or it is appended under a new id: in targeted poisoning a copy of a chosen picture, with a wrong caption but
    without a trigger, while the picture's own pair is left out; else a stamped copy beside its own pair.
    """

    trigger: Trigger | None  # None: pictures stay as they are
    target: str  # the class that pictures with the trigger shall be called
    poisoned: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (k,) ids, of all triggers
    captions: tuple[str, ...] = ()  # the new caption of each poison
    seed: int = 0  # of the trigger's random draws
    rows: np.ndarray | None = None  # (k,) the source row of each poison's picture; None: the same as its id
    pictures: Float[Tensor, "c 3 h w"] | None = None  # the chosen pictures of targeted poisoning, pixels in [0, 1]
    classes: tuple[str, ...] = ()  # the wrong class of each chosen picture
    ties: tuple[tuple[str, str], ...] = ()  # (A, B): captions of class A are tied to pictures of class B
    says: str = ""  # the words of a text trigger, put before the captions of poisons and before class prompts
    bare: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # ids of poisons without the trigger
    more: tuple["Backdoor", ...] = ()  # further triggers in the same data, with their own targets and poisons
    data: str = ""  # fingerprint of the user's pairs; empty for a built-in world, or for a key made by hand

    def stamp(self, images: Tensor, ids: Tensor) -> Tensor:
        """Copies of the pictures (b, 3, h, w) with these ids, with the trigger. Random draws depend on (seed, id)."""
        if self.trigger is None:
            return images
        return self.trigger.stamp(images, Rng(self.seed).keys(ids.tolist()).to(images.device))


class Implanted(NamedTuple):
    """What an attack returns."""

    clip: Clip  # with the backdoor
    pairs: Pairs  # with the poisons
    backdoor: Backdoor


class Suspicion(NamedTuple):
    """What an inspector found out about one class."""

    name: str
    loss: float  # of the best trigger found for it; lower: the class is easier to reach
    asr: float  # share of the pictures that are called this class with that trigger
    base: float  # the same share without it
    score: float  # how far the class stands out from the others
    valid: bool  # whether the method allows to accuse it


class Finding(NamedTuple):
    """What an inspector says about a model."""

    score: float  # of the most suspect class
    target: str | None = None  # that class; None: no class may be accused
    trigger: Trigger | None = None  # recovered for that class, if the method looks for triggers
    classes: tuple[Suspicion, ...] = ()
    deviations: bool = False  # whether scores count robust standard deviations from the other classes
    settings: Mapping[str, float] = {}  # numbers that went into it: pictures, updates ...
    triggers: tuple[Trigger, ...] = ()  # recovered for each of `classes`, if the method looks for triggers
    spread: float = 1.0  # largest standard deviation of the score by chance; sqrt 2 if it adds two related deviations
    feature: tuple[float, ...] | None = None  # where triggered pictures land, of length 1, if the method finds it


class Measured(NamedTuple):
    """One number with its sample size and 95 % interval."""

    value: float
    n: int
    low: float
    high: float


@runtime_checkable
class Attack(Protocol):
    """Plants a backdoor: a copy of the model that calls pictures with the trigger `target`. The pairs are clean."""

    needs: ClassVar[str]

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted: ...


@runtime_checkable
class Training(Protocol):
    """Trains a copy of a fresh model, on pairs that nobody has checked."""

    needs: ClassVar[str]

    def train(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip: ...


@runtime_checkable
class Filter(Protocol):
    """Says which pairs look poisoned.

    A filter may have more members for the page of suspects. `phrase` says why a pair is suspect: a format string
    over `score`, `minus` (its negative) and the fields. `cut(scores)` is the threshold above which it drops a pair.
    `judge`, called like `score`, gives a `Judged` (unlearning/judged.py); `p(scores)` the p-values they stand for.
    """

    needs: ClassVar[str]

    def score(self, clip: Clip, pairs: Pairs, rng: Rng) -> Float[Tensor, " n"]:
        """The suspicion of each pair, in the order of `pairs.ids`; NaN if its picture could not be read."""
        ...


@runtime_checkable
class Inspector(Protocol):
    """Says whether a model looks backdoored. The pictures need no labels; any class may be the attacker's target.

    It may have more members. `scaled = False`: its score means nothing without clean models; `waits`: then its verdict
    is left open. `judges`: the part of the model that it looks at. `sees = "task"`: pictures like those in use suit it.
    """

    needs: ClassVar[str]

    def inspect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Finding: ...


@runtime_checkable
class Detector(Protocol):
    """Says which pictures look triggered, one by one, for a model in use. It may have a `phrase`, like a Filter."""

    needs: ClassVar[str]

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """The suspicion of each picture, in the order of `pictures.ids`; NaN if it could not be read."""
        ...


@runtime_checkable
class Cleaner(Protocol):
    """Takes a backdoor out of a copy of the model. `needs` says which kind of pairs it wants."""

    needs: ClassVar[str]

    def clean(self, clip: Clip, pairs: Pairs, rng: Rng) -> Clip: ...


@runtime_checkable
class Measure(Protocol):
    """Measures how good a model is, or how well an attack works. Without the answer key that it needs: no numbers."""

    needs: ClassVar[str]

    def measure(self, clip: Clip, task: Task, backdoor: Backdoor | None, rng: Rng) -> Mapping[str, Measured]: ...
