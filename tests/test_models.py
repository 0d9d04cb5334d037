"""Weights, models and the output protocol: what loads, what is refused, what stock open_clip reads back."""

import argparse
import errno
import inspect
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from typing import Any

import open_clip
import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from clipvet import io, types
from clipvet.errors import Unsupported, UserError
from clipvet.io import outputs
from clipvet.models import adapter, checkpoints, released, weights
from clipvet.rng import Rng
from clipvet.types import Clip


@pytest.fixture(scope="module")
def vit() -> Any:
    return checkpoints.load("shapes-vit", rng=Rng(1))


class Evil:
    """A pickle of this runs code when it is loaded."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


def refused(path, *words):
    with pytest.raises(UserError) as e:
        io.load_weights(path)
    told = str(e.value)
    assert str(path) in told
    assert "\n" not in told
    assert all(w in told for w in words), told


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_weights_round_trip(tmp_path, suffix):
    state = {"a": torch.randn(3, 2).T, "b": torch.tensor(2.0)}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        io.save_weights(state | {"tied": state["b"]}, path)
        assert path.stat().st_mode & 0o044
    else:
        torch.save(state, path)
    read = io.load_weights(path)
    assert torch.equal(read["a"], state["a"])
    assert torch.equal(read["b"], state["b"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_released_checkpoint_format(tmp_path):
    state = {"module.a": torch.ones(2), "module.b": torch.zeros(1)}
    held = {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"x": [1]},
        "args": argparse.Namespace(lr=1e-5),
        "scaler": None,
    }
    torch.save(held, tmp_path / "w.pt")
    assert set(io.load_weights(tmp_path / "w.pt")) == {"a", "b"}


def test_hostile_pickles_do_not_run(tmp_path):
    flag = tmp_path / "it-ran"
    torch.save({"state_dict": {"a": torch.ones(1)}, "args": Evil(flag)}, tmp_path / "zip.pt")
    torch.save(Evil(flag), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"args": argparse.Namespace(x=Evil(flag))}, tmp_path / "inside.pth")
    for name in ("zip.pt", "old.bin", "inside.pth"):
        refused(tmp_path / name, "mkdir", "safetensors")
    assert not flag.exists()


def test_files_that_hold_no_weights(tmp_path, vit):
    refused(tmp_path / "missing.pt", "not a file")
    (tmp_path / "zero.pt").touch()
    refused(tmp_path / "zero.pt", "0 bytes")
    (tmp_path / "text.pt").write_text("hello")
    refused(tmp_path / "text.pt", "damaged")
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors")
    refused(tmp_path / "text.safetensors", "damaged")
    (tmp_path / "w.npz").write_text("x")
    refused(tmp_path / "w.npz", ".safetensors")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "state dict")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as z:  # what torch.jit.save writes, in outline
        z.writestr("m/constants.pkl", b"\x80\x02).")
        z.writestr("m/data.pkl", b"\x80\x02).")
        z.writestr("m/version", b"3\n")
    refused(tmp_path / "script.pt", "TorchScript")
    for suffix in (".pt", ".safetensors"):
        whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
        torch.save({"a": torch.ones(999)}, whole) if suffix == ".pt" else io.save_weights({"a": torch.ones(999)}, whole)
        cut.write_bytes(whole.read_bytes()[:-500])
        refused(cut, "damaged")


def test_archives_that_torch_reads_otherwise_than_python(tmp_path):
    """Each holds, for torch alone, a hundred times its size."""
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "whole.pt")
    path, extra = tmp_path / "bomb.pt", struct.pack("<HH", 0x9999, 4) + b"abcd"
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member))
        bomb.writestr(odd := zipfile.ZipInfo("whole/odd"), b"")
        odd.extra = extra
    held = path.read_bytes()
    refused(path, "compressed")
    at = held.rfind(extra)
    path.write_bytes(held[: at + 2] + b"\xff" + held[at + 3 :])
    assert torch.load(path)["a"].shape == (10**6,)  # noqa: TID251
    refused(path, "damaged")
    later = held.find(b"PK\1\2") + 6
    path.write_bytes(held[:later] + b"\x63" + held[later + 1 :])
    refused(path, "damaged", "version 9.9")
    own = bytearray(held[(begins := held.find(b"PK\1\2")) : -22])
    for k in (m.start() for m in re.finditer(b"PK\1\2", own)):
        own[k + 10 : k + 12], own[k + 24 : k + 28] = b"\0\0", own[k + 20 : k + 24]  # stored, in as many bytes
    path.write_bytes(held[:-22] + own + held[-22:])  # Python takes the directory before the end, torch the one it names
    assert struct.unpack("<I", held[-6:-2])[0] == begins
    assert torch.load(path)["a"].shape == (10**6,)  # noqa: TID251
    refused(path, "hide")


def test_numbers_under_many_names(tmp_path):
    same = torch.zeros(1000)
    torch.save({"a": same, "tied": same, "b": torch.ones(2)}, tmp_path / "tied.pt")
    assert set(io.load_weights(tmp_path / "tied.pt")) == {"a", "tied", "b"}
    torch.save({f"k{i}": same for i in range(3)}, tmp_path / "many.pt")
    refused(tmp_path / "many.pt", "many names")


def test_full_disk_is_an_oserror_and_leaves_the_old_file(tmp_path, monkeypatch):
    io.save_weights({"a": torch.ones(1)}, tmp_path / "w.safetensors")

    def full(tensors, path):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space") as e:
        io.save_weights({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert e.value.errno == errno.ENOSPC
    assert io.load_weights(tmp_path / "w.safetensors")["a"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_output_protocol(tmp_path):
    out, config = tmp_path / "runs" / "a", {"seed": 1, "rates": (0.1, 0.2), "path": tmp_path}
    with io.output(out, config) as work:
        (work / "x").touch()
        (work / "state").mkdir()
        assert not out.exists()
    assert sorted(p.name for p in out.iterdir()) == ["run.json", "x"]
    assert not work.exists()
    with pytest.raises(io.AlreadyDone) as done, io.output(out, config):
        pass
    assert done.value.out == out
    with (
        pytest.raises(UserError, match=r"another run \(it differs in seed\); choose another --out"),
        io.output(out, config | {"seed": 2}),
    ):
        pass
    (tmp_path / "empty").mkdir()
    with io.output(tmp_path / "empty", config):
        pass
    assert (tmp_path / "empty" / "run.json").exists()
    (tmp_path / "file").touch()
    for blocked in ("file", "file/below"):
        with pytest.raises(UserError, match="choose another --out"), io.output(tmp_path / blocked, config):
            pass


def interrupted(out, config, folder, by):
    with io.output(out, config) as work:
        (work / folder).mkdir()
        raise by


def test_output_resumes_a_killed_run(tmp_path):
    out, partial = tmp_path / "a", tmp_path / "a.partial"
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, {"seed": 1}, "saved", KeyboardInterrupt())
    with pytest.raises(UserError, match="another run"), io.output(out, {"seed": 2}):
        pass
    with pytest.raises(UserError, match="bad"), io.output(out, {"seed": 1}):
        raise UserError("bad")  # not this call's folder: it stays
    with io.output(out, {"seed": 1}) as work:
        assert (work / "saved").exists()
    assert not partial.exists()


def test_a_run_that_was_killed_before_its_last_line_is_tidied_up(tmp_path):
    with io.output(tmp_path / "a", {}) as work:
        (work / "weights").touch()
    (tmp_path / "a" / "state").mkdir()
    with pytest.raises(io.AlreadyDone), io.output(tmp_path / "a", {}):
        pass
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"weights", "run.json"}


def test_output_keeps_only_what_can_go_on(tmp_path):
    out, partial = tmp_path / "a", tmp_path / "a.partial"
    with pytest.raises(UserError), io.output(out, {}):
        raise UserError("bad option")
    assert not partial.exists()
    with pytest.raises(UserError, match=r"a\.partial is full"):
        interrupted(out, {}, "state", OSError(errno.ENOSPC, "No space left on device"))
    assert (partial / "state").exists()
    with pytest.raises(UserError, match="diverged"), io.output(out, {}):
        raise UserError("diverged")
    assert (partial / "state").exists()


def test_json(tmp_path):
    io.write_json(tmp_path / "a.json", {"b": tmp_path})
    assert io.read_json(tmp_path / "a.json") == {"b": str(tmp_path)}
    (tmp_path / "a.json").write_text("{")
    for path in (tmp_path / "a.json", tmp_path / "missing.json"):
        with pytest.raises(UserError, match=path.name):
            io.read_json(path)


@pytest.mark.parametrize("name", ["shapes-vit", "shapes-rn"])
def test_stock_open_clip_reads_it(tmp_path, name):
    clip: Any = checkpoints.load(name, rng=Rng(1))
    digest = checkpoints.save(clip, tmp_path / "m", {"role": "clean"})
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    held = weights.config_hash(tmp_path / "m", tmp_path / "m" / weights.WEIGHTS)
    assert card == {"role": "clean", "weights_sha256": digest, "config_sha256": held}
    made: Any = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'm'}")
    stock, _, preprocess = made
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")
    stock.eval()
    images, captions = torch.rand(5, 3, 32, 32), ["a red circle", "ein Kreis", ""]
    tokens = tokenizer(captions)
    assert torch.equal(tokens, clip.tokenize(captions))
    with torch.no_grad():
        want = stock.encode_image(preprocess.transforms[-1](images), normalize=True)  # the last one normalises
        assert torch.allclose(clip.encode_image(images), want, atol=1e-5)
        assert torch.allclose(clip.encode_text(captions), stock.encode_text(tokens, normalize=True), atol=1e-5)
        assert torch.allclose(clip.logit_scale, stock.logit_scale.exp())
    for again in (checkpoints.load(str(tmp_path / "m")), checkpoints.load(f"local-dir:{tmp_path / 'm'}")):
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in clip.state_dict().items())
        assert again.geometry == clip.geometry
        assert torch.equal(again.mean, clip.mean)


def test_quick_gelu_and_preprocessing_survive(tmp_path, vit):
    quick = checkpoints.load("shapes-vit", rng=Rng(1), quick_gelu=True)
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(quick.encode_image(x), vit.encode_image(x), atol=1e-4)
    quick.config["preprocess_cfg"] |= {"resize_mode": "squash", "mean": [0.5, 0.5, 0.4], "interpolation": "bilinear"}
    checkpoints.save(quick, tmp_path / "m", {})
    again = checkpoints.load(str(tmp_path / "m"))
    assert again.geometry == types.Geometry(32, "squash", "bilinear")
    assert again.mean.flatten().tolist() == pytest.approx([0.5, 0.5, 0.4])
    quick.pixel_mean = again.mean
    assert torch.allclose(again.encode_image(x), quick.encode_image(x), atol=1e-5)


def test_is_a_clip(vit):
    known: object = vit
    assert isinstance(known, Clip)  # from Python 3.12 on its members are looked up statically
    assert all(inspect.getattr_static(vit, name) is not None for name in ("mean", "geometry", "logit_scale"))
    z = vit.encode_image(torch.rand(3, 3, 32, 32))
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)
    assert not any("pixel" in k for k in vit.state_dict())
    vit.logit_scale.backward()
    assert vit.model.logit_scale.grad is not None
    vit.zero_grad()


def test_tokenize_remembers_and_stays_bounded(vit, monkeypatch):
    calls = []
    tokens = adapter.Tokens(lambda texts: calls.append(texts) or vit.tokenizer(texts))
    captions = ["a", "b", "a"]
    assert torch.equal(tokens(captions), vit.tokenizer(captions))
    assert torch.equal(tokens(captions), vit.tokenizer(captions))
    assert calls == [["a", "b"]]
    monkeypatch.setattr(adapter, "REMEMBERED", 2)
    assert torch.equal(tokens(["c", "a"]), vit.tokenizer(["c", "a"]))
    assert len(tokens.rows) == 2
    assert tokens([]).shape == (0, 16)


def test_weights_come_from_the_rng_alone():
    before = torch.random.get_rng_state()
    a: Any = checkpoints.load("shapes-vit-deep", rng=Rng(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    b: Any = checkpoints.load("shapes-vit-deep", rng=Rng(5))
    c: Any = checkpoints.load("shapes-vit-deep", rng=Rng(6))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not torch.equal(a.model.visual.proj, c.model.visual.proj)


def test_clone_shares_no_weights(vit):
    twin = adapter.clone(vit)
    with torch.no_grad():
        twin.model.visual.proj.zero_()
    assert vit.model.visual.proj.abs().sum() > 0
    assert twin.tokenizer is vit.tokenizer


def test_checkpoint_of_another_layout(tmp_path, vit):
    state = {f"module.{k}": v.half() for k, v in vit.model.state_dict().items()}
    state |= {"module.input_resolution": torch.tensor(32), "module.logit_scale": state["module.logit_scale"].reshape(1)}
    torch.save({"epoch": 1, "state_dict": state, "args": argparse.Namespace()}, tmp_path / "w.pt")
    read: Any = checkpoints.load("shapes-vit", str(tmp_path / "w.pt"), rng=Rng(9))
    x = torch.rand(2, 3, 32, 32)
    assert read.model.visual.proj.dtype == torch.float32
    assert torch.allclose(read.encode_image(x), vit.encode_image(x), atol=1e-2)


def test_weights_that_do_not_fit(tmp_path, vit):
    state = dict(vit.model.state_dict())
    del state["ln_final.bias"]
    state |= {"positional_embedding": torch.zeros(3, 64), **{f"extra{i}": torch.zeros(1) for i in range(5)}}
    io.save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as e:
        checkpoints.load("shapes-vit", str(tmp_path / "w.safetensors"))
    told = str(e.value)
    for part in (
        "missing: ln_final.bias;",
        "unexpected: extra0, extra1, extra2 and 2 more;",
        "positional_embedding (3, 64) for (16, 64)",
        str(tmp_path / "w.safetensors"),
    ):
        assert part in told


def test_models_that_cannot_be_loaded(tmp_path, vit, monkeypatch):
    def no(match, *args, **kwargs):
        with pytest.raises(UserError, match=match):
            checkpoints.load(*args, **kwargs)

    no("close: ViT-B-32", "ViT-B-23")
    no("open_clip_config.json", str(tmp_path))
    no("neither a file nor an open_clip tag", "shapes-vit", "no-such-tag")
    no("drop pretrained", "hf-hub:a/b", "w.pt")
    no("cannot be used", "shapes-vit", device="meta:7x")
    checkpoints.save(vit, tmp_path / "m", {})
    io.save_weights(vit.model.state_dict() | {"logit_scale": torch.tensor(0.0)}, tmp_path / "m" / weights.WEIGHTS)
    no("is not the file that", str(tmp_path / "m"))
    (tmp_path / "m" / weights.WEIGHTS).unlink()
    no("holds no weights", str(tmp_path / "m"))
    checkpoints.save(vit, tmp_path / "m", {})
    io.write_json(tmp_path / "m" / "open_clip_config.json", {"model_cfg": {"embed_dim": 3}})
    no("the configuration in .* is not the one that", str(tmp_path / "m"))
    (tmp_path / "m" / "card.json").unlink()
    no("cannot be built", str(tmp_path / "m"))
    io.write_json(
        tmp_path / "m" / "open_clip_config.json", {**vit.config, "preprocess_cfg": {"resize_mode": "longest"}}
    )
    no("not supported", str(tmp_path / "m"))
    large = {**vit.config, "preprocess_cfg": {**vit.config["preprocess_cfg"], "size": 60_000}}
    with pytest.raises(UserError, match="pictures of 60000 pixels a side are not supported"):
        adapter.OpenClip(vit.model, vit.tokenizer, large)
    monkeypatch.chdir(tmp_path)
    checkpoints.save(vit, tmp_path / "ViT-B-32", {})
    no("write local-dir:ViT-B-32", "ViT-B-32")
    assert torch.equal(checkpoints.load("local-dir:ViT-B-32").mean, vit.mean)


def test_a_bare_file_is_read_as_its_architecture_was_released(tmp_path):
    for name, mean in (("ViT-B-16-SigLIP", 0.5), ("ViT-B-32", 0.48145466)):
        assert released.agreed(name)["mean"][0] == mean
    assert "mean" not in released.agreed("ViT-L-14")  # of several kinds
    assert released.agreed("shapes-vit") == {}
    assert released.differ("ViT-L-14") == ["mean", "std", "quick_gelu"]
    assert released.differ("ViT-B-32", quick_gelu=True) == released.differ("ViT-L-14-336") == []


def test_a_bare_file_says_that_it_does_not_say_how_it_was_trained(tmp_path, monkeypatch, caplog):
    half = {"mean": [0.5] * 3, "std": [0.25] * 3}
    told = {"one": {}, "two": half | {"quick_gelu": True, "resize_mode": "squash"}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(told))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: told[tag])
    first: Any = checkpoints.load("shapes-vit", rng=Rng(3))
    torch.save(first.model.state_dict(), tmp_path / "w.pt")
    plain: Any = checkpoints.load("shapes-vit", str(tmp_path / "w.pt"))
    assert all(w in caplog.text for w in ("differ in mean, std, resize_mode, quick_gelu", "--like TAG", "one, two"))
    caplog.clear()
    like: Any = checkpoints.load("shapes-vit:two", str(tmp_path / "w.pt"))
    assert not caplog.records
    assert (like.mean.flatten().tolist(), like.geometry.mode) == ([0.5] * 3, "squash")
    assert (like.config["model_cfg"].get("quick_gelu"), plain.config["model_cfg"].get("quick_gelu")) == (True, None)
    with pytest.raises(UserError, match=r"was not released as 'three'; give one of one, two"):
        checkpoints.load("shapes-vit:three", str(tmp_path / "w.pt"))
    numbers = {k: torch.tensor(1) for k in ("input_resolution", "context_length", "vocab_size")}
    io.save_weights(numbers, tmp_path / "openai.pt")
    with pytest.raises(UserError, match="give it as the model, without a name"):
        checkpoints.load("ViT-B-32", str(tmp_path / "openai.pt"))


def test_what_the_user_says_of_a_bare_file(tmp_path, monkeypatch, caplog, clipvet):
    told = {"one": {}, "two": {"mean": [0.5] * 3, "std": [0.25] * 3, "quick_gelu": True}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(told))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: told[tag])
    first: Any = checkpoints.load("shapes-vit", rng=Rng(3))
    torch.save(first.model.state_dict(), file := tmp_path / "w.pt")

    def seen(model: str) -> tuple[list[float], list[float], bool]:
        clip: Any = checkpoints.load(model, str(file))
        x = torch.rand(2, 3, 32, 32, generator=Rng(0).generator())
        torch.testing.assert_close(
            clip.encode_image(x), F.normalize(clip.model.encode_image((x - clip.mean) / clip.std), dim=1)
        )
        quick = any(type(m).__name__ == "QuickGELU" for m in clip.model.modules())
        return [round(v, 4) for v in clip.mean.flatten().tolist()], clip.std.flatten().tolist(), quick

    name = released.spec("shapes-vit", mean="0.1, 0.2,0.3", std="0.5", quick_gelu=True)
    assert name == "shapes-vit:mean=0.1/0.2/0.3,std=0.5,quick-gelu=yes"
    assert seen(name) == ([0.1, 0.2, 0.3], [0.5] * 3, True)
    assert not caplog.records, "everything is said"
    assert seen(released.spec("shapes-vit", like="two", std="0.5")) == ([0.5] * 3, [0.5] * 3, True)
    assert seen("shapes-vit:two,quick-gelu=no")[2] is False
    seen("shapes-vit:quick-gelu=no")
    assert "differ in mean, std: taken" in caplog.text
    for wrong, match in {
        "shapes-vit:mean=127": "is not for pixels in", "shapes-vit:std=0": "is not for pixels in",
        "shapes-vit:mean=1/2": "is not understood; give mean=R/G/B", "shapes-vit:gelu=no": "is not understood",
        "shapes-vit:quick-gelu=maybe": "is not understood", "shapes-vit:std=nan": "is not understood",
        "local-dir:x,mean=0.5": "only a file of weights with an architecture's name",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=match):
            checkpoints.load(wrong, str(file))
    for pretrained in (None, "one"):
        with pytest.raises(UserError, match="is about a file of weights; give it with --pretrained"):
            checkpoints.load("shapes-vit:two", pretrained)
    with pytest.raises(UserError, match=r"has QuickGELU; for a model without it give ViT-B-32$"):
        released.facts("ViT-B-32-quickgelu", released.Said("", {"quick_gelu": False}), "w.pt", False)
    call = ["convert", "shapes-vit", tmp_path / "out", "--pretrained", file, "--layout", "open_clip"]
    assert clipvet(*call, "--mean", "0.1,0.2,0.3", "--std", "0.5", "--quick-gelu").code == 0
    assert json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["preprocess_cfg"]["mean"] == [
        0.1,
        0.2,
        0.3,
    ]


def test_thousands_of_spaces_hide_no_text(vit):
    for spaces in (" " * 3000, "\n\t" * 1500, "\u2003\xa0" * 1500):
        said = vit.tokenize([spaces + "a star", "a" + spaces + "star"])
        assert torch.equal(said, vit.tokenizer([spaces + "a star", "a star"]))
    assert vit.tokenize(["a " * 3000 + "star"]).shape == vit.tokenize(["a star"]).shape


def test_tokens_that_the_text_tower_does_not_know(vit):
    tokens = adapter.Tokens(vit.tokenizer, 100)
    with pytest.raises(UserError, match="gives token 49407, its text tower knows 100"):
        tokens(["a star"])


def test_two_processes_do_not_write_one_output(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "WAIT", 0.1)
    with io.output(tmp_path / "out", {"a": 1}) as work:
        code = (
            "from pathlib import Path; from clipvet.io import outputs; outputs.WAIT = 0.1\n"
            "with outputs.output(Path('out'), {'a': 1}): 1"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert "is being written by another process" in done.stderr
        (work / "f").touch()
    assert (tmp_path / "out" / "f").exists()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32", "RN50"])
def test_open_clip_names_are_known(name):
    assert checkpoints._named(name) == name.replace("/", "-")


def test_quantised_weights_are_unsupported(tmp_path, vit):
    checkpoints.save(vit, tmp_path / "m", {})
    rounded = {k: (v * 10).to(torch.int8) if v.ndim == 2 else v for k, v in vit.model.state_dict().items()}
    io.save_weights(rounded, tmp_path / "m" / weights.WEIGHTS)
    (tmp_path / "m" / "card.json").unlink()
    with pytest.raises(Unsupported, match="holds quantised numbers"):
        checkpoints.load(str(tmp_path / "m"))
