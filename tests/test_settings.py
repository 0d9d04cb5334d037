"""`--set field=value`: what is reached, what is refused, and in which words."""

from dataclasses import dataclass, field

import pytest

from clipvet import settings
from clipvet.attacks.poison import Poison
from clipvet.cleaners.par import Par
from clipvet.cleaners.rvpt import Rvpt
from clipvet.errors import UserError
from clipvet.inspectors.clip_inspector import ClipInspector
from clipvet.training.plain import Plain
from clipvet.triggers.patch import Patch


def refused(method, *changes):
    with pytest.raises(UserError) as e:
        settings.apply(method, changes)
    told = str(e.value)
    assert "\n" not in told
    assert told.startswith(f"--set {changes[-1].partition('=')[0]}")
    return told


def test_fields_take_values_of_their_type():
    par = settings.apply(Par(), ["tau=1.5", "epochs=3", "erase=(0.1, 0.2)", "optimizer=muon", "batch=64"])
    assert par == Par(tau=1.5, epochs=3, erase=(0.1, 0.2), optimizer="muon", batch=64)
    assert settings.apply(Par(), ["erase=0.1,0.2"]).erase == (0.1, 0.2)
    assert settings.apply(Par(), ["lr=1e-4"]).lr == 1e-4
    assert settings.apply(Poison(), ["count=5"]).count == 5
    assert settings.apply(Poison(count=5), ["count=None"]).count is None
    assert settings.apply(Patch(), ["fresh=True"]).fresh is True
    assert settings.apply(Poison(), ["templates=('a {}', '{}=b')"]).templates == ("a {}", "{}=b")
    assert settings.apply(Rvpt(), ["others=hat, two hats"]).others == ("hat", "two hats")
    assert (
        settings.apply(Rvpt(), ["others=hat"]).others == settings.apply(Rvpt(), ["others=('hat',)"]).others == ("hat",)
    )
    assert settings.apply(Rvpt(), ["others='hat, red'"]).others == ("hat, red",)
    assert settings.apply(Par(), []) == Par()
    assert settings.apply(ClipInspector(), ["eps=8/255"]).eps == 8 / 255


@pytest.mark.parametrize("value", ["8/0", "8/x", "8/255/2"])
def test_a_fraction_that_is_none_is_refused(value):
    refused(ClipInspector(), f"eps={value}")


def test_the_last_setting_wins_and_the_method_stays_as_it_was():
    par = Par()
    assert settings.apply(par, ["tau=1", "tau=2"]).tau == 2
    assert par == Par()


def test_what_is_set_to_what_it_is_stays_told_by_the_same_words():
    assert repr(settings.apply(ClipInspector(), ["epochs=1"])) == repr(ClipInspector())


@pytest.mark.parametrize("name", ["trigger.size", "size"])
def test_a_nested_field_is_reached_with_and_without_a_dot(name):
    attack = Poison()
    changed = settings.apply(attack, [f"{name}=0.25", "training.lr=1e-5", "muon_lr=0.1"])
    assert changed == Poison(trigger=Patch(size=0.25), training=Plain(lr=1e-5, muon_lr=0.1))
    assert attack == Poison()


@dataclass(frozen=True)
class Twice:
    first: Patch = field(default_factory=Patch)
    second: Patch = field(default_factory=Patch)
    pattern: str = "none"


def test_an_ambiguous_name_is_refused_but_the_methods_own_field_comes_first():
    told = refused(Twice(), "size=0.5")
    assert "ambiguous" in told
    assert "first.size, second.size" in told
    assert settings.apply(Twice(), ["second.size=0.5"]) == Twice(second=Patch(size=0.5))
    assert settings.apply(Twice(), ["pattern=x"]) == Twice(pattern="x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tau=high", "valid number"),
        ("batch=2.5", "valid integer"),
        ("batch=many", "valid integer"),
        ("optimizer=5", "valid string"),
        ("erase=0.1", "valid tuple"),
        ("erase=(1, 2, 3)", "tuple"),
        ("tau=__import__('os')", "valid number"),  # text, never run
    ],
)
def test_a_value_of_another_type_is_refused(change, said):
    assert said in refused(Par(), change)


@pytest.mark.parametrize("name", ["nope", "trigger.nope", "needs", "trigger", "Tau", ""])
def test_an_unknown_field_is_refused_with_what_there_is(name):
    told = refused(Poison(), f"{name}=1")
    assert "Poison has no such field" in told
    for known in ("rate", "trigger.size", "training.lr"):
        assert known in told


def test_a_setting_without_a_value_is_refused():
    assert "write field=value" in refused(Par(), "tau")


def test_a_value_that_the_part_itself_refuses_stays_a_user_error():
    with pytest.raises(UserError, match="Patch: pattern"):
        settings.apply(Poison(), ["pattern=dots"])


@pytest.mark.parametrize(
    "change",
    [
        "batch=0",
        "at_once=0",
        "lr=-1",
        "lr=0",
        "lr=nan",
        "lr=1000",
        "epochs=0",
        "epochs=-1",
        "epochs=nan",
        "betas=(1.5, 0.9)",
    ],
)
def test_numbers_that_no_method_can_work_with(change: str):
    assert "give" in refused(ClipInspector(), change)
    assert "give" in refused(Plain(), "muon_lr=0")
