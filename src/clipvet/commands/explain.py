"""clipvet explain: one method, its paper and its settings."""

import textwrap
from typing import Annotated, Any

import typer

# a field that many methods have -> what it is, where its own line does not say so
MEANING = {
    "epochs": "how often the training sees each pair, in the mean",
    "batch": "pairs a step",
    "lr": "learning rate",
    "lr_start": "learning rate at the first step",
    "muon_lr": "learning rate of the matrices, where the optimizer is muon",
    "weight_decay": "AdamW's weight decay",
    "betas": "AdamW's two averages",
    "optimizer": "adamw, sgd or muon",
    "precision": "no, bf16 or fp16",
    "warmup": "share of the steps in which the rate rises",
    "rate": "poison rate, a fraction of the pairs",
    "seed": "of its random pattern",
    "templates": "the sentences that class names are put into",
    "augment": "random views of the pictures; None: as they are",
    "steps": "updates",
    "faint": "searches for a faint change",
    "warped": "searches for a warp",
    "striped": "searches for stripes, waves, grids and checks",
}
# a field that many methods have -> when to change it
WHEN = {
    "epochs": "more when the loss still falls at the end; fewer when clean accuracy falls",
    "batch": "the largest that fits into memory, but small enough for a few hundred steps; `clean` plans it for you",
    "lr": "lower when clean accuracy falls or the loss rises; higher when nothing changes. Small models need more",
    "lr_start": "as lr",
    "precision": "bf16 saves time on new processors and GPUs; no is full precision",
    "accumulate": "more when a batch does not fit into memory",
    "max_bad": "more when you know that many of your pictures cannot be read",
    "augment": "stronger when the model learns its training pictures by heart",
    "size": "by what the attacker may use: a share of the picture's side",
    "alpha": "see the formula; in filters and detectors it is the share of clean ones that may be called bad",
    "pictures": "more when you have them and time; fewer for a quick look",
    "steps": "fewer for a quick look; more when the search has not settled",
    "starts": "more when the starts disagree",
    "reference": "a clean model that the suspect was made from, if there is one",
    "push": "0 shows what the rest of the recipe does by itself",
    "templates": "the templates that your model is used with",
    "w_keep": "higher when clean accuracy falls",
    "training": "how the poisoned pairs are trained on; its own settings are set the same way",
}


def command(
    name: Annotated[str, typer.Argument(help="a method, such as par, or a family and a method, such as cleaners/par")],
) -> None:
    """One method: what it does, its paper, its settings with their meaning and values, and when to change them."""
    from clipvet import find
    from clipvet.errors import UserError

    family, _, method = name.rpartition("/")
    if family:
        find.known_family(family)
    method = method.replace("-", "_").lower()
    homes = [f for f in ([family] if family else find.VERBS) if method in find.names(f)]
    if not homes:
        close = find.near(method, {n for f in find.VERBS for n in find.names(f)}) or "."
        raise UserError(f"there is no method '{method}'{close} `clipvet list` shows all")
    for home in homes:
        print("\n".join(explained(home, method)))


def explained(family: str, name: str) -> list[str]:
    """The lines that explain a method."""
    from clipvet import find
    from clipvet.experiments.presets import shapes

    card, kind = find.card(family, name), find.load(family, name)
    lines = [f"{name}  ({family}, {find.VERBS[family]})", "", *_wrapped(card["sentence"], "  "), ""]
    lines += [*textwrap.indent(card["formula"], "    ").splitlines(), ""] if card["formula"] else []
    for part in ("paper", "needs", "differs"):
        lines += _wrapped(card[part], f"  {part + ':':9}") if card[part] else []
    fields = find.fields(family, name)
    try:
        small: Any = shapes(kind())
    except TypeError:  # it has a field without a default
        small = None
    lines += ["", "  settings (--set NAME=VALUE)" if fields else "  It has no settings."]
    for field in fields:
        here = getattr(small, field.name, None)
        own = f"; shapes: {here!r}" if small and not _nested(here) and repr(here) != repr(field.default) else ""
        default = "must be given" if field.default is find.MISSING else f"default {_shown(field.default)}"
        lines += ["", f"    {field.name}: {field.type}  ({default}{own})"]
        meaning = field.meaning or MEANING.get(field.name, "")
        lines += _wrapped(meaning, " " * 8) if meaning else []
        lines += _wrapped(f"change: {WHEN[field.name]}", " " * 8) if field.name in WHEN else []
    lines += ["", "  A default is the paper's value where the paper gives one; `differs` says where it is not."] * bool(
        fields
    )
    lines += ["  'shapes' is the value for the built-in world, whose models are small."] * bool(fields)
    return [*lines, ""]


def _nested(value: object) -> bool:
    import dataclasses

    return dataclasses.is_dataclass(value)


def _shown(value: object) -> str:
    return f"a method of its own, {type(value).__module__.rpartition('.')[2]}" if _nested(value) else repr(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=indent, subsequent_indent=" " * len(indent))
