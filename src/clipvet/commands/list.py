"""clipvet list: what there is."""

from typing import Annotated

import typer


def command(
    family: Annotated[
        str | None,
        typer.Argument(help="triggers, attacks, training, filters, inspectors, detectors, cleaners, measures"),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="a method of that family: the same as `clipvet explain`")] = None,
) -> None:
    """List every method by its published name, with a sentence and what it needs."""
    from clipvet import find

    if family and name:
        from clipvet.commands import explain

        return explain.command(f"{family}/{name}")

    for f in [find.known_family(family)] if family else find.VERBS:
        print(f"{f}  ({find.VERBS[f]})")
        for name in find.names(f):
            card = find.card(f, name)
            print(f"  {name:16} {card['sentence']}")
            print(f"  {'':16} needs: {card['needs']}")
