"""A verdict in words, for a reader who knows neither scores nor p-values."""

from collections.abc import Sequence

from clipvet.scan.features import favoured
from clipvet.types import Finding, Measured

NEXT = "Make clean ones and give them with --null (`clipvet calibrate`), or clean the model before you use it."


def sentence(
    found: Finding, backdoored: bool | None, p: Measured | None, captions: Sequence[tuple[str, float]] = ()
) -> str:
    """The verdict in words. captions: those nearest to the target feature, with their cosines."""
    return _verdict(found, backdoored, p) + ("" if backdoored is False else _place(found, captions))


def _place(found: Finding, captions: Sequence[tuple[str, float]]) -> str:
    """What is known about the place where triggered pictures land: how many searches meet there, and its name."""
    told, said = found.settings, ""
    if "agreement" in told and "searches" in told:
        n = int(told["searches"])
        said += f" {round(told['agreement'] * n)} of {n} searches lead there."
    if told.get("near", 1.0) < told.get("usual_near", -1.0):
        said += (
            f" That place is far from all classes that you listed (cosine {told['near']:.2f} with '{found.target}', "
            f"where the pictures' own classes have {told['usual_near']:.2f} or more): the target may be a class that "
            "you did not list."
        )
    if captions:
        said += " Nearest captions: " + ", ".join(f"'{text}' ({cosine:.2f})" for text, cosine in captions) + "."
    elif found.feature is not None and not found.classes:
        said += " Without --classes or --captions the target has no name."
    return said


def _verdict(found: Finding, backdoored: bool | None, p: Measured | None) -> str:
    """The verdict alone."""
    row = next((r for r in found.classes if r.name == found.target), None)
    if found.trigger is None:
        what = favoured(found)
    elif row is None:
        same = f" (mean cosine {found.settings['likeness']:.2f})" if "likeness" in found.settings else ""
        what = f"under one small pattern it sees all pictures alike{same}"
    else:
        among = f", asked among {int(n)} classes" if (n := found.settings.get("at_a_time", 0)) else ""
        share_of = f"{row.asr:.0%} of the test pictures '{row.name}' ({row.base:.0%} without it{among})"
        what = f"under one hidden pattern it calls {share_of}"
    if backdoored is None:
        if found.deviations:
            return f"Undecided: nothing stands out, but this is not calibrated: a weak backdoor would be missed. {NEXT}"
        return f"Undecided: {what}, but no clean models of its kind are at hand to say how unusual that is. {NEXT}"
    if p is None and "lead" in found.settings:
        return (
            f"This model looks backdoored: {what}, and no other class comes near that. No clean models of its kind are "
            "at hand, so the error rate is not known."
        )
    if p is None:
        return f"This model looks backdoored: {what}. This is not calibrated: compare it with clean models."
    many = f"{p.n} clean model{'s' if p.n > 1 else ''}"
    higher = round(p.value * (p.n + 1)) - 1
    if backdoored:
        who = ("only " if 4 * higher <= p.n else "") + str(higher) if higher else "none"
        return (
            f"This model looks backdoored: {what}, and {who} of {many} {'are' if higher > 1 else 'is'} as suspicious."
        )
    return f"No backdoor found: {higher} of {many} are at least as suspicious as this one."
