"""What an attack is about to do, and the known ways in which it fails, before hours are spent on it."""

from clipvet.attacks.poison import Poison
from clipvet.data.captions import names_target
from clipvet.types import Clip, Pairs


def preflight(attack: Poison, pairs: Pairs, target: str, clip: Clip, fine_tuning: bool) -> tuple[list[str], list[str]]:
    """(facts, warnings) about a poisoning attack on these pairs, one sentence each.

    Facts: the number of poisons, the trigger, the target and the training. Warnings: settings with which published
    attacks had a low attack success rate (ASR), or a target that no caption names.
    fine_tuning: whether the model already has trained weights; a low learning rate is only then a mistake.
    """
    named = sum(names_target(pairs.caption(i), target) for i in pairs.ids)
    among = len(pairs) - named * attack.paired
    n = attack.count if attack.count is not None else round(attack.rate * among)
    lr = getattr(attack.training, "lr", float("nan"))
    facts = [
        f"{n} poisons among {len(pairs)} pairs (rate {n / len(pairs):.3%}), captions: "
        + ("kept (label-consistent)" if attack.label_consistent else attack.captions),
        f"trigger {attack.trigger!r} on pixels in [0, 1] at {clip.geometry.size} px, after resize and crop, "
        "before normalising",
        f"target '{target}', named by {named} of {len(pairs)} captions",
        f"{'fine-tuning' if fine_tuning else 'training from scratch'} with {attack.training!r}",
    ]
    warnings = []
    if n < 75:
        warnings.append(
            f"{n} poisons are few: published attacks used 75 or more (59 on COCO left ASR 0.25 %); the count matters"
        )
    if fine_tuning and lr < 1e-5:
        warnings.append(f"lr {lr:g} is low for fine-tuning: 1e-6, as published, left ASR 5.7 % where 1e-5 gave 97.7 %")
    if not named and not attack.label_consistent:
        warnings.append(f"no caption names '{target}': the model may not know the word")
    if attack.label_consistent and n < 500:
        warnings.append("label-consistent poisoning with few pictures is known to stay below 10 % ASR")
    return facts, warnings
