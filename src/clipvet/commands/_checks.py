"""What can be told from an option alone, before anything heavy is imported: a typo is answered at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

TABLES = (".csv", ".tsv", ".parquet")


def method_of(family: str) -> Callable[[str | None], str | None]:
    """Refuses a name that no method of the family has."""

    def check(name: str | None) -> str | None:
        from clipvet import find

        return find.known(family, name) if name is not None else None

    return check


def path(value: Any) -> Any:
    """Refuses a file or folder that is not there."""
    if value is not None and absent(value):
        raise _missing(value)
    return value


def recipes(values: list[Path]) -> list[Path]:
    """Refuses recipes that are not there."""
    for value in filter(absent, values):
        raise _missing(value, "; recipes lie in recipes/")
    return values


def optional_model(value: str | None) -> str | None:
    """`model`, where there need be none."""
    return None if value is None else model(value)


def model(value: str) -> str:
    """Refuses what can only be a path, and is not there."""
    if value.startswith(("./", "../", "/", "~")) or ("/" in value and ":" not in value):
        path(value)
    return value


def data(value: str | None) -> str | None:
    """Refuses a table that is not there."""
    if value is not None and value.lower().endswith(TABLES):
        path(value)
    return value


def absent(value: object) -> bool:
    return not Path(str(value)).exists()


def _missing(value: object, hint: str = "") -> Exception:
    from clipvet.errors import UserError

    folder = Path(str(value)).parent
    near = ""
    if folder.is_dir():
        from clipvet import find

        near = find.near(Path(str(value)).name, [p.name for p in folder.iterdir()])
    return UserError(f"there is no file or folder {value}{near or hint}")
