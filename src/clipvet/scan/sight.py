"""What each test can and cannot see, in words for the pages. A test that is not listed here says nothing about itself.

The figures are those of our own trials; docs/threat-model.md says where they come from.
"""

from typing import NamedTuple


class Sight(NamedTuple):
    """sees: what the test would find. blind: what it would miss."""

    sees: tuple[str, ...]
    blind: tuple[str, ...]


SIGHT = {
    "files": Sight(
        ("code in pickles, whatever the files are named", "TorchScript archives, and configurations that ask for code"),
        ("anything that the weights do", "tricks that the scanner does not know"),
    ),
    "collapse": Sight(
        (
            "a small patch that sends pictures to one class",
            "a faint change of all pixels that does so",
            "a slight warp that does so",
            "stripes, waves, grids or checks over the whole picture that do so",
        ),
        (
            "large patches: one that covers 6 % of the picture was missed in our test",
            "triggers in captions, and whatever the text tower hides",
            "wrong answers for a few chosen pictures, which need no trigger",
            "an attacker who trains against this very test",
        ),
    ),
    "clip_inspector": Sight(
        ("one small change of the picture that turns all pictures into a class of your list",),
        (
            "a target that is not in your list of classes",
            "the encoder below learned prompts",
            "a weak backdoor, where there are no clean models to compare with",
        ),
    ),
    "auto": Sight(
        ("poisoned pairs with a trigger whose captions do not fit, eight or more bound by a word",),
        (
            "poisoned pairs whose captions fit their pictures",
            "poison that this model was not trained on, or that stands out no more than odd clean pairs do",
            "very few poisoned pairs",
        ),
    ),
    "accuracy": Sight(
        ("how often the model names the right class of your pictures",),
        ("backdoors: a backdoored model is as accurate as a clean one, until it sees its trigger",),
    ),
}


def sight_of(method: str) -> Sight:
    """What the test of this name sees; the repr of a method is taken for its name."""
    word = method.partition("(")[0]
    name = "".join("_" + c.lower() if c.isupper() else c for c in word).lstrip("_")
    return SIGHT.get(name, Sight((), ()))
