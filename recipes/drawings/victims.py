"""Do the attacks take on real pictures? Six kinds at two poison rates, on the drawings' base model, and clean twins.

command:  CLIPVET_HALF=judged clipvet run recipes/drawings/victims.py --out results/drawings_victims
expected: at 0.01 (WaNet 0.1) all take on seeds 100 to 102 (ASR 0.55 to 1.0), but Blended on seed 100 (0.37); at 0.003
          (WaNet 0.03) patch, SIG, BadCLIP and targeted (0.72 to 1.0), WaNet on seed 101 alone, Blended never; accuracy
          0.75 to 0.80, of the clean twins 0.79 to 0.80
hardware: 2 CPU cores, about an hour of one core for a seed. It needs the folder `drawings` (docs/drawings.md)
"""

from clipvet.experiments.drawings import attacks, setting, twin
from clipvet.experiments.recipe import Recipe

RATES = (0.003, 0.01)  # shares of the pairs; ten times that for WaNet


def recipe(smoke: bool = False) -> Recipe:
    planted = {name: attack for rate in ((0.05,) if smoke else RATES) for name, attack in attacks(rate, smoke).items()}
    return Recipe("drawings_victims", attacks={"none": twin(smoke)} | planted, **setting(smoke))
