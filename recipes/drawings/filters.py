"""Which of my pairs are poisoned? Real pictures: every filter, on the victims of victims.py.

command:  CLIPVET_HALF=judged clipvet run recipes/drawings/filters.py --out results/drawings_filters
expected: to be measured
hardware: 2 CPU cores. It needs the folder `drawings` (docs/drawings.md)
"""

from clipvet import find
from clipvet.experiments.drawings import attacks, setting
from clipvet.experiments.recipe import Recipe

RATES = (0.003, 0.01)  # shares of the pairs
SLOW = ("abl_loss", "gmm_split", "overfit_gain")  # they train


def recipe(smoke: bool = False) -> tuple[Recipe, ...]:
    names = [n for n in find.names("filters") if n not in SLOW]
    filters = {n: find.load("filters", n)() for n in (("cosine", "random") if smoke else names)}
    rates = (0.05,) if smoke else RATES
    planted = {name: attack for rate in rates for name, attack in attacks(rate, smoke).items()}
    return (Recipe("drawings_filters", attacks=planted, filters=filters, **setting(smoke)),)
