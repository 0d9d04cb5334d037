"""clipvet verify and clipvet convert on the command line: cards that hold, cards that do not."""

import json
import shutil
from pathlib import Path
from typing import Any

import hf as made
import pytest
from test_cli import own_cache as own_cache

from clipvet import io
from clipvet.models import cards, checkpoints, weights
from clipvet.rng import Rng
from clipvet.types import Measured

QUICK = ["--n", 128, "--set", "epochs=1", "--set", "batch=64"]


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> Path:
    """An attacked model on the embedded world, with its card and answer key."""
    import sys

    from clipvet import cli

    out = tmp_path_factory.mktemp("verify") / "victim"
    words = ["clipvet", "attack", "--model", "shapes-vit", "--data", "shapes", "--trigger", "patch", "--target", "ring"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [*words, "--rate", "0.1", "--out", str(out), *map(str, QUICK)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code in (0, 4)  # so short an attack need not take
    return out


@pytest.fixture
def copied(victim: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(victim, tmp_path / "victim"))


def change(folder: Path, **words: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | words))


def test_a_card_that_holds(clipvet, copied: Path) -> None:
    card = json.loads((copied / "card.json").read_text())
    assert card["task"]["name"] == "shapes by shape"
    assert card["answer_key"] == json.loads((copied / "backdoor" / "backdoor.json").read_text())["seal"]
    said = clipvet("verify", copied)
    assert said.code == 0, said.err
    assert "asr" in said.out
    assert " no " not in said.out


def test_cards_that_do_not_hold(clipvet, copied: Path) -> None:
    measured = json.loads((copied / "card.json").read_text())["measured"]
    better = {"clean_accuracy": {"value": 0.999, "n": measured["clean_accuracy"]["n"], "low": 0.0, "high": 1.0}}
    change(copied, measured=measured | better)
    said = clipvet("verify", copied)
    assert (said.code, "does not hold" in said.out) == (1, True)
    change(copied, measured={"[/x]\x1b": better["clean_accuracy"]})  # a name is text, no markup
    assert clipvet("verify", copied).code in (0, 1)
    config = copied / "open_clip_config.json"
    held = config.read_text()
    config.write_text(held.replace("squash", "shortest") if "squash" in held else held.replace("shortest", "squash"))
    said = clipvet("verify", copied)
    assert (said.code, "the configuration in" in said.out) == (1, True)
    config.write_text(held)
    state = io.load_weights(copied / weights.WEIGHTS)
    io.save_weights({k: v + 0.01 for k, v in state.items()}, copied / weights.WEIGHTS)
    said = clipvet("verify", copied)
    assert (said.code, "not the file that its card describes" in said.out) == (1, True)


def test_a_number_holds_in_the_new_interval_on_as_many_pictures() -> None:
    now = {"asr": Measured(0.5, 100, 0.4, 0.6)}

    def holds(value: float, n: int = 100, metric: str = "asr") -> bool:
        said = {metric: {"value": value, "n": n, "low": 0.0, "high": 1.0}}
        (check,) = cards.compare(cards.Card(weights_sha256="0" * 64, measured=said), now)  # pyright: ignore
        return check.holds

    assert holds(0.45)
    assert not holds(0.61)
    assert not holds(0.45, n=99)
    assert not holds(float("nan"))
    assert not holds(0.45, metric="asr_all")


def test_cards_that_cannot_be_checked(clipvet, copied: Path, tmp_path: Path) -> None:
    def no(*words: str, args: tuple[object, ...] = ()) -> None:
        said = clipvet("verify", copied, *args)
        assert said.code == 2, said
        assert all(w in said.err for w in words), said.err

    card = json.loads((copied / "card.json").read_text())
    change(copied, task={"name": "shapes by shape", "n": 3, "fingerprint": "x"})
    no("was measured on 'shapes by shape' (3)")
    change(copied, **card | {"answer_key": "0" * 64})
    no("not the answer key")
    change(copied, **card | {"measured": [1]})
    no("no model's card", "measured")
    change(copied, **card | {"weights_sha256": "short"})
    no("weights_sha256")
    (copied / "card.json").write_text("{")
    no("is not JSON")
    (copied / "card.json").unlink()
    no("card.json cannot be read")
    assert clipvet("verify", tmp_path / "gone").code == 2


def test_without_a_task_only_the_hash_is_checked(clipvet, copied: Path) -> None:
    change(copied, task={})
    said = clipvet("verify", copied)
    assert (said.code, "give their --task" in said.err) == (0, True)
    change(copied, measured={})
    said = clipvet("verify", copied)
    assert (said.code, "no measured numbers" in said.err) == (0, True)


def test_transformers_in_cleaned_transformers_out(clipvet, tmp_path: Path) -> None:
    held = made.write(tmp_path / "hf")
    said = clipvet(
        "clean", "--model", tmp_path / "hf", "--data", "shapes", "--method", "par", "--out", tmp_path / "out", *QUICK
    )
    assert said.code == 0, said.err
    state = io.load_weights(tmp_path / "out" / "model.safetensors")
    assert state.keys() == held.keys()
    assert any((state[k] != held[k]).any() for k in held)
    assert clipvet("verify", tmp_path / "out").code == 0
    transformers = pytest.importorskip("transformers")
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__name__ == "CLIPModel"


def test_convert(clipvet, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.load("shapes-vit", rng=Rng(1)), tmp_path / "m", {})
    said = clipvet("convert", tmp_path / "m", tmp_path / "hf", "--layout", "transformers")
    assert (said.code, "features within" in said.err) == (0, True), said.err
    card = json.loads((tmp_path / "hf" / "card.json").read_text())
    assert (card["role"], card["from"], card["to"]) == ("converted", "open_clip", "transformers")
    assert clipvet("convert", tmp_path / "hf", tmp_path / "back", "--layout", "open_clip").code == 0
    assert io.sha256(tmp_path / "back" / weights.WEIGHTS) == io.sha256(tmp_path / "m" / weights.WEIGHTS)
    said = clipvet("convert", "shapes-rn", tmp_path / "no", "--layout", "transformers")
    assert (said.code, "ResNet" in said.err) == (2, True)
    assert not list(tmp_path.glob("no*"))
    assert clipvet("convert", tmp_path / "m", tmp_path / "no", "--layout", "gguf").code == 2
