"""What is drawn, in emojibase's words; which concepts can be classes, and which half each belongs to."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = {  # the task by groups: its classes, and emojibase's subgroups that make them
    "mammal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine",),
    "insect": ("animal-bug",),
    "flower": ("plant-flower",),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "meal": ("food-prepared", "food-asian"),
    "dessert": ("food-sweet",),
    "drink": ("drink",),
    "building": ("place-building", "place-religious"),
    "car or train": ("transport-ground",),
    "boat": ("transport-water",),
    "aircraft": ("transport-air",),
    "weather": ("sky-weather",),
    "sport": ("sport",),
    "clothing": ("clothing",),
    "musical instrument": ("musical-instrument",),
    "tool": ("tool",),
}
GROUP_OF = {sub: name for name, subs in GROUPS.items() for sub in subs}
OBJECTS = (3, 4, 5, 6, 7)  # emojibase's groups that make classes: animals, food, places, activities, objects
COMMON = 8  # concepts; a keyword of more of them ("animal") does not make two of them alike
TONE = re.compile(r"(.+)-(light|medium-light|medium|medium-dark|dark)$")


@dataclass(frozen=True)
class Concept:
    """Something that can be drawn: emojibase's label in plain words, keywords, number of its group, subgroup."""

    label: str
    tags: tuple[str, ...] = ()
    group: int = -1
    subgroup: str = ""

    @property
    def half(self) -> str:
        """development or judged. The label alone decides: no seed and no option moves a concept to the other half."""
        return ("development", "judged")[hashed("half", self.label) % 2]


@dataclass(frozen=True)
class Words:
    """emojibase's entries by the code points and by the label of each."""

    by_code: dict[str, Concept]
    by_name: dict[str, Concept]
    toned: frozenset[str]  # code points of skin-tone variants

    @classmethod
    def of(cls, entries: Sequence[dict[str, Any]], subgroups: dict[str, str]) -> "Words":
        """From data.json and the subgroups of groups.json. KeyError, TypeError or AttributeError for anything else."""
        codes, names, toned = {}, {}, set()
        for entry in entries:
            label = re.sub(r"[“”:]", "", entry["label"].replace("’", "'")).strip()
            tags = tuple(str(t) for t in entry.get("tags", ()))
            concept = Concept(label, tags, int(entry.get("group", -1)), subgroups.get(str(entry.get("subgroup")), ""))
            codes[_plain(entry["hexcode"])] = concept
            names.setdefault(_compact(label), concept)
            toned |= {_plain(skin["hexcode"]) for skin in entry.get("skins", ())}
        for concept in list(names.values()):
            if concept.group == 9:  # one set calls the flag of Canada "canada"
                names.setdefault(_compact(concept.label.removeprefix("flag")), concept)
        return cls(codes, names, frozenset(toned))

    def find(self, code: str | None, names: Iterable[str]) -> Concept | None:
        """What a drawing shows: by its code points if its set tells them, else by the first known of its names."""
        if code and _plain(code) in self.toned:
            return Concept("skin tone", group=2)
        if code and (known := self.by_code.get(_plain(code))):
            return known
        return next((self.by_name[n] for n in map(_name, names) if n in self.by_name), None)


def left_out(name: str, concept: Concept | None, names: Collection[str]) -> str:
    """Why a drawing of this name in a set of these names is not used; empty if it is."""
    toned = TONE.match(name)
    if "skin-tone" in name or re.search(r"-tone\d", name) or (toned and toned[1] in names and concept is None):
        return "skin tones"
    label, group = (concept.label, concept.group) if concept else ("", -1)
    if group == 2:
        return "skin tones"
    if group == 9 or re.match(r"flag-|(.*-)?flag$", name):
        return "flags"
    subgroup = concept.subgroup if concept else ""
    if subgroup in ("keycap", "alphanum") or re.match(r"(keycap|letter|digit|regional-?indicator)", name):
        return "letters and digits"
    if label.startswith("regional indicator") or re.fullmatch(r"u?(?=.*\d)[0-9a-f]{4,}", name) or name.isdigit():
        return "letters and digits"
    if re.search(r"o-?'?clock$|-?thirty$|^clock\d", name) or re.search(r"o'clock$|thirty$", label):
        return "clock faces"
    return ""


def can_be_class(concept: Concept) -> bool:
    """Of the groups of things, with a name of at most three plain words."""
    plain = re.fullmatch(r"[A-Za-z'-]+( [A-Za-z'-]+){0,2}", concept.label)
    return concept.group in OBJECTS and concept.subgroup != "time" and plain is not None


def unlike(concepts: Iterable[Concept]) -> list[Concept]:
    """As many of these as go together as classes: no two share a word of their names or a rare keyword.

    "locked" and "key" share "lock"; "cat" is a keyword of "tiger". Short names come first, then it goes by their hash.
    """
    order = sorted(concepts, key=lambda c: (len(c.label.split()), hashed("order", c.label)))
    names = {c.label: _stems([c.label]) for c in order}
    tags = {c.label: _stems(c.tags) for c in order}
    often = Counter(w for c in order for w in names[c.label] | tags[c.label])

    def alike(a: str, b: str) -> bool:
        named = names[a] & names[b] or names[a] & tags[b] or tags[a] & names[b]
        return bool(named) or any(often[w] <= COMMON for w in tags[a] & tags[b])

    out: list[Concept] = []
    for c in order:
        if not any(alike(c.label, other.label) for other in out):
            out.append(c)
    return out


def _stems(parts: Iterable[str]) -> set[str]:
    found = {w.removesuffix("'s") for part in parts for w in re.findall(r"[a-z0-9']+", part.lower().replace("’", "'"))}
    stem: Callable[[str], str] = lambda w: w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w  # noqa: E731
    return {stem(w) for w in found} - {"with", "without", "and", "of", "on", "in", "the", "at", "behind", "a"}


def _name(name: str) -> str:
    return _compact(re.sub(r"-\d$", "", name))


def _compact(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _plain(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def hashed(*parts: str) -> int:
    """The same number on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")
