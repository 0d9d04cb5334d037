"""clipvet recommend: what do you have, and which method fits?"""

import re
import textwrap
from typing import Annotated

import typer

from clipvet.commands._choices import CHOICES, GOALS


def command(
    goal: Annotated[
        str | None, typer.Argument(help=f"what you want to do: {', '.join(GOALS)}; without it: all")
    ] = None,
    have: Annotated[list[str] | None, typer.Option(help="a word for what you have, such as pairs or shots")] = None,
) -> None:
    """Which method fits what you have: the command to type, what it costs, and when it fails."""
    from clipvet.errors import UserError

    goal = {"vet": "inspect", "detect": "inspect"}.get(goal, goal) if goal else None
    if goal and goal not in GOALS:
        from clipvet import find

        close = find.near(goal, GOALS) or "."
        raise UserError(f"there is no goal '{goal}'{close} The goals are {', '.join(GOALS)}")
    among = [c for c in CHOICES if goal in (None, c.goal)]
    words = [w.lower() for w in have or ()]
    found = [c for c in among if all(_alike(w) in _told(c) for w in words)]
    if not found:
        there = "; ".join(dict.fromkeys(c.have for c in among))
        raise UserError(f"nothing fits --have {' --have '.join(words)}; you may have: {there}")
    for g in dict.fromkeys(c.goal for c in found):
        print(f"{GOALS[g]}\n")
        for c in (c for c in found if c.goal == g):
            print(f"  {c.have}")
            for label, text in (("use", c.use), ("cost", c.cost), ("fails", c.fails and f"when {c.fails}")):
                if text:
                    print(textwrap.fill(plain(text), 110, initial_indent=f"    {label:7}", subsequent_indent=" " * 11))
            if c.line:
                print(f"    $ {c.line}")
            print()
    print("Figures are from the built-in world. `clipvet explain METHOD` says more about a method and its settings.")


def plain(markdown: str) -> str:
    """The text without Markdown's marks: code and links become words."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown).replace("`", "")


def _alike(word: str) -> str:
    """What people call it -> what the list calls it."""
    return {
        "shots": "labelled pictures",
        "reference": "clean model",
        "checkpoint": "model alone",
        "prompts": "prompt",
    }.get(word, word)


def _told(choice) -> str:
    return f"{choice.have} {choice.use}".lower()
