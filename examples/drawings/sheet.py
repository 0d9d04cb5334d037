"""A contact sheet: concepts of the development half, each as several training teams drew it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from clipvet import io
from clipvet.rng import Rng
from drawings import folder, render, sets, views
from drawings.concepts import Concept, can_be_class, hashed
from drawings.sets import SIDES, Drawing, Set

ROWS = 8
SIDE, GAP, LEFT, TOP = 64, 6, 84, 20  # pixels


def write(archives: Path, out: Path, which: Sequence[Set] = sets.SETS, words: Set = sets.WORDS, jobs: int = 2) -> None:
    """Writes a PNG of ROWS concepts x sets, as training pictures. Raises UserError.

    Share-alike sets are left out, and so is all that only judged runs may see.
    """
    trained = [s for s in which if s.team not in SIDES]
    sets.fetch(archives, (*trained, words))
    known = sets.read_words(archives, words)
    drawn: dict[Concept, dict[str, Drawing]] = {}
    columns = []
    for one in trained:
        found, owner = sets.read_set(archives, one, known, Counter())
        if "-SA" in owner["licence"]:
            continue
        columns.append(one.name)
        for d in found:
            if d.concept and can_be_class(d.concept) and d.concept.half == "development":
                drawn.setdefault(d.concept, {}).setdefault(one.name, d)
    rows = sorted(drawn, key=lambda c: (-len(drawn[c]), hashed("sheet", c.label)))[:ROWS]
    chosen = [drawn[c][name] for c in rows for name in columns if name in drawn[c]]
    pngs = {d.key: png for d, png in folder.rendered(chosen, SIDE, jobs, render.SECONDS, Counter()).items()}
    step = SIDE + GAP
    picture = Image.new("RGB", (LEFT + step * len(columns), TOP + step * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for x, name in enumerate(columns):
        draw.text((LEFT + step * x, 4), name.removesuffix("-emojis").removesuffix("-icons"), "black")
    for y, concept in enumerate(rows):
        draw.text((2, TOP + step * y + SIDE // 2 - 6), concept.label[:14], "black")
        for x, name in enumerate(columns):
            if name in drawn[concept] and (png := pngs.get(drawn[concept][name].key)):
                g = Rng(0).fork("sheet", concept.label, name).numpy()
                picture.paste(views.view(png, SIDE, g), (LEFT + step * x, TOP + step * y))
    with io.replacing(out) as tmp:
        picture.save(tmp, "PNG", optimize=True)
