"""The command line: python examples/drawings ARCHIVES --out OUT."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from clipvet.errors import UserError
from clipvet.io import AlreadyDone
from drawings import folder, sets, sheet
from drawings.sets import Set


def main(argv: Sequence[str] | None = None, which: Sequence[Set] = sets.SETS, words: Set = sets.WORDS) -> int:
    """The exit code: 0, or 2 with a sentence for what cannot be used."""
    parser = argparse.ArgumentParser(
        "python examples/drawings", description="Drawings of design teams as real pictures."
    )
    add, standard = parser.add_argument, folder.Options()
    add("archives", type=Path, help="folder of the packages' archives; what it lacks is fetched with npm")
    add("--out", type=Path, help="folder to write")
    add("--sheet", type=Path, help="write a contact sheet, a PNG, of drawings under permissive licences")
    add("--size", type=int, default=standard.size, help="pixels: 64 by default, 224 for models of full size")
    add("--seed", type=int, default=standard.seed, help="of grounds, turns and captions; the split is always the same")
    add("--copies", type=int, default=standard.copies, help="training pictures of each drawing")
    add("--classes", type=int, default=standard.classes, help="classes of each half's task, at most")
    add("--least", type=int, default=standard.least, help="training teams that must have drawn a class")
    add("--concepts", type=Path, help="text file of labels, one a line: choose the classes among these")
    add("--jobs", type=int, default=os.cpu_count(), help="renderers side by side")
    told = parser.parse_args(argv)
    if not told.out and not told.sheet:
        parser.error("give --out, --sheet or both")
    if not 16 <= told.size <= 1024 or min(told.copies, told.classes - 1, told.least, told.jobs) < 1:
        parser.error("--size is 16 to 1024, --classes at least 2, --copies, --least and --jobs at least 1")
    try:
        only = tuple(told.concepts.read_text(encoding="utf-8").split("\n")) if told.concepts else ()
        only = tuple(label.strip() for label in only if label.strip())
        options = folder.Options(told.size, told.seed, told.copies, told.classes, told.least, only)
        if told.sheet:
            sheet.write(told.archives, told.sheet, which, words, told.jobs)
            print(f"wrote {told.sheet}")
        if told.out:
            folder.build(told.archives, told.out, options, which, words, told.jobs)
            print(f"wrote {told.out}")
    except AlreadyDone as e:
        print(e)
    except (UserError, OSError, UnicodeDecodeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
