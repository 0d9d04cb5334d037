"""The exposure matrix of one model, on the terminal and for --json."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipvet.types import Backdoor, Measured

NO_ENTRY = "N.E."  # the trigger cannot enter


def check_entry(key: "Backdoor | None") -> None:
    """UserError unless there is a trigger that could enter somewhere."""
    from clipvet.errors import UserError

    if key is None:
        raise UserError(
            "--exposure needs a trigger; give the answer key of an attack as --backdoor OUT/backdoor, or the trigger "
            "that an inspection has recovered as --backdoor VERDICT/trigger"
        )
    if key.trigger is None and not key.says:
        raise UserError(
            "this answer key has no trigger: its attack ties pictures or classes, so there is nothing to enter a "
            "way of use; leave --exposure out"
        )


def show_matrix(measured: "dict[str, Measured]") -> None:
    """Prints the matrix as a table, where it was measured."""
    from rich.console import Console
    from rich.table import Table

    from clipvet.measures.exposure import entries

    found = entries(measured)
    if not found:
        return
    table = Table("way of use", "without", "with", "points", "95 % interval", "n", title="what the trigger does, in %")
    for way, entry in found.items():
        said = [NO_ENTRY, NO_ENTRY, "", str(entry.clean.n)]
        if entry.entered:
            d = entry.delta
            said = [f"{100 * entry.triggered.value:.1f}", f"{100 * d.value:+.1f}"]
            said += [f"{100 * d.low:+.1f} to {100 * d.high:+.1f}", str(d.n)]
        table.add_row(way.replace("_", " "), f"{100 * entry.clean.value:.1f}", *said)
    Console().print(table)


def told_matrix(measured: "dict[str, Measured]") -> dict[str, Any]:
    """The matrix for --json: way of use -> its numbers, or what the trigger does there is said to be N.E."""
    from clipvet.measures.exposure import entries

    found = entries(measured)
    told = {
        way: {part: m._asdict() if m else NO_ENTRY for part, m in entry._asdict().items()}
        for way, entry in found.items()
    }
    return {"exposure": told} if told else {}
