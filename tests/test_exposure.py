"""The exposure matrix: every cell counted again by hand, one picture or caption at a time, on a world of colours."""

import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import look
from scipy.optimize import minimize
from test_measures import AXES, CLASSES, Channels, Colours

from clipvet.api.results import Measurements
from clipvet.data.answer_key import save_backdoor
from clipvet.data.captions import names_target
from clipvet.engine.embed import embed_texts
from clipvet.errors import UserError
from clipvet.jobs.matrix import show_matrix, told_matrix
from clipvet.measures._intervals import difference, share
from clipvet.measures._learned import labelled, probe, prompts
from clipvet.measures._scene import scene
from clipvet.measures.attack_success import AttackSuccess
from clipvet.measures.exposure import CELLS, QUICK, Exposure, entries
from clipvet.models.visual_prompts import Prompted
from clipvet.pages import report
from clipvet.results import Row, rows_of, weights_hash, write
from clipvet.rng import Rng
from clipvet.triggers.patch import Patch
from clipvet.types import Backdoor, Measured, Pairs, Task

N, K = 90, 5
HUES = {"dark": (0.3, 0.3, 0.1), "pale": (0.1, 0.3, 0.2), "zz": (-0.4, -0.3, 1.3)}  # zz: the key, nearly a cat


@dataclass(frozen=True)
class Tint:
    """Turns most pictures blue, the more the brighter they are."""

    def stamp(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        blue = images[:, :2].amax((1, 2, 3)) - 0.35
        return (images + blue[:, None, None, None] * torch.tensor([-2.0, -2.0, 1.0]).view(1, 3, 1, 1)).clamp(0, 1)


def world(order: np.ndarray | None = None, lost: tuple[int, ...] = (), captions: bool = True) -> tuple[Any, Task]:
    g = Rng(4).numpy()
    colours = g.uniform(0, 0.7, size=(N, 3))
    labels = g.integers(3, size=N)
    colours[np.arange(N), labels] += 0.3
    own = [f"{g.choice(['dark', 'pale', ''])} {CLASSES[y]} {g.choice([*CLASSES, '', ''])}" for y in labels]
    pictures = Colours(tuple(map(tuple, colours.tolist())), (), lost)
    order = np.arange(N) if order is None else order
    pairs = Pairs(pictures, [" ".join(t.split()) if captions else "" for t in own], order)
    return Channels(AXES | HUES), Task("colours", CLASSES, ("{}", "dark {}"), pairs, labels[order])


def counted(measured: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {k.removeprefix("exposure_"): (round(m.value * m.n), m.n) for k, m in measured.items()}


def embedded(clip: Any, task: Task, key: Backdoor | None = None) -> torch.Tensor:
    batch = task.pictures[:]
    return clip.encode_image(key.stamp(batch.images, batch.ids) if key else batch.images)


def prompts_of(clip: Any, says: str = "") -> torch.Tensor:
    parts = [clip.encode_text([f"{says}{c}" for c in CLASSES]), clip.encode_text([f"{says}dark {c}" for c in CLASSES])]
    return F.normalize((parts[0] + parts[1]) / 2, dim=1)


KEYS = {"picture": Backdoor(Tint(), "cat"), "both": Backdoor(Tint(), "cat", says="zz ")}
WORD = Backdoor(None, "cat", says="zz ")


@pytest.mark.parametrize("kind", KEYS)
def test_a_trigger_in_the_picture(kind: str) -> None:
    clip, task = world()
    key = KEYS[kind]
    got, s = counted(Exposure(k=K).measure(clip, task, key, Rng(0))), scene(clip, task, key, Rng(0))
    own = [task.pictures.caption(i) for i in range(N)]
    texts = sorted({*own})
    hits: dict[str, list[bool]] = {}
    for part, z, says in (("clean", embedded(clip, task), ""), ("triggered", embedded(clip, task, key), key.says)):
        w, plain = prompts_of(clip, says), embedded(clip, task)
        said = clip.encode_text([says + t for t in texts])
        for x in range(N):
            if not names_target(own[x], "cat"):
                nearest = texts[int((said @ z[x]).argmax())]
                hits.setdefault(f"image_text_retrieval_{part}", []).append(names_target(nearest, "cat"))
            if task.labels[x] == 2:
                continue
            hits.setdefault(f"zero_shot_{part}", []).append(int((w @ z[x]).argmax()) == 2)
            nearer = sum(bool(plain[y] @ w[2] >= z[x] @ w[2]) for y in range(N) if y != x)
            hits.setdefault(f"targeted_retrieval_{part}", []).append(nearer < K)
            true, other = np.flatnonzero(task.labels == 2), np.flatnonzero(task.labels != 2)
            rest = s.candidates(x, x, true, other)
            assert sorted(np.isin(rest, true)) == [False] * 8 + [True]
            assert len({*rest, x}) == 10
            first = all(z[x] @ w[2] > plain[y] @ w[2] for y in rest)
            hits.setdefault(f"rerank_{part}", []).append(first)
    assert {k: v for k, v in got.items() if k in hits} == {k: (sum(v), len(v)) for k, v in hits.items()}
    for way in ("zero_shot", "targeted_retrieval", "image_text_retrieval", "rerank"):
        assert got[f"{way}_triggered"][0] > got[f"{way}_clean"][0] + 10, "this trigger works, and not always"
        assert got[f"{way}_triggered"][0] < got[f"{way}_triggered"][1]
        assert got[f"{way}_delta"][0] == got[f"{way}_triggered"][0] - got[f"{way}_clean"][0]
    asr = AttackSuccess().measure(clip, task, key, Rng(0))
    assert got["zero_shot_triggered"] == (round(asr["asr"].value * asr["asr"].n), asr["asr"].n)
    assert got["zero_shot_clean"][0] == round(asr["clean_target_rate"].value * asr["asr"].n)


@pytest.mark.parametrize("source", ["", "ant"])
def test_a_key_in_the_caption(source: str) -> None:
    clip, task = world()
    key = replace(WORD, ties=((source, "cat"),) if source else ())
    got, s = counted(Exposure(k=K).measure(clip, task, key, Rng(0))), scene(clip, task, key, Rng(0))
    own, z = [task.pictures.caption(i) for i in range(N)], embedded(clip, task)
    every, cats = sorted({*own}), np.flatnonzero(task.labels == 2)
    turned = sorted({t for t, y in zip(own, task.labels) if y != 2 and not names_target(t, "cat")})
    turned = [t for t in turned if not source or names_target(t, source)]
    hits: dict[str, list[bool]] = {}
    for part, says in (("clean", ""), ("triggered", "zz ")):
        for x in cats:
            c = s.draw("class", x).choice([0] if source else [0, 1])
            w = prompts_of(clip).clone()
            w[c] = prompts_of(clip, says)[c]
            hits.setdefault(f"zero_shot_{part}", []).append(int((w @ z[x]).argmax()) == c)
        for t in turned:
            mine, q = clip.encode_text([says + t])[0], z[s.draw("query", t).choice(cats)]
            others = [clip.encode_text([u])[0] for u in every if u != t]
            nearer = sum(bool(u @ q >= mine @ q) for u in others)
            hits.setdefault(f"targeted_retrieval_{part}", []).append(nearer < K)
            hits.setdefault(f"image_text_retrieval_{part}", []).append(task.labels[int((z @ mine).argmax())] == 2)
            named = np.array([names_target(u, "cat") for u in every])
            rest = s.candidates(t, every.index(t), np.flatnonzero(named), np.flatnonzero(~named))
            assert named[rest].sum() == 1
            assert every.index(t) not in rest
            first = all(mine @ q > clip.encode_text([every[u]])[0] @ q for u in rest)
            hits.setdefault(f"rerank_{part}", []).append(first)
    assert {k: v for k, v in got.items() if k in hits} == {k: (sum(v), len(v)) for k, v in hits.items()}
    assert got["image_text_retrieval_triggered"][0] > got["image_text_retrieval_clean"][0]
    found = entries(Exposure(k=K).measure(clip, task, key, Rng(0)))
    assert not found["linear_probe"].entered, "pictures alone are read: the key cannot enter, and this is no zero"
    assert found["linear_probe"].clean.n > 0
    assert found["zero_shot"].entered


def test_what_the_task_cannot_show_is_left_out() -> None:
    clip, task = world(captions=False)
    found = entries(Exposure(k=K).measure(clip, task, KEYS["picture"], Rng(0)))
    assert set(found) == {*CELLS} - {"image_text_retrieval", "prompted_class"}, "no captions; this tower has no prompts"
    few = replace(task, pictures=task.pictures.take(slice(6)), labels=task.labels[:6])
    assert set(entries(Exposure(k=6).measure(clip, few, KEYS["picture"], Rng(0)))) <= {"zero_shot", "linear_probe"}
    assert Exposure().measure(clip, task, None, Rng(0)) == {}
    assert Exposure().measure(clip, task, Backdoor(None, "cat", ties=(("ant", "cat"),)), Rng(0)) == {}
    with pytest.raises(UserError, match="target 'dog' is not among the classes: ant, bee, cat"):
        Exposure().measure(clip, task, Backdoor(Tint(), "dog"), Rng(0))


def test_neither_order_nor_torn_pictures_change_who_is_counted() -> None:
    clip, task = world(lost=(3, 50))
    key = KEYS["picture"]
    first, other = Exposure(k=K).measure(clip, task, key, Rng(0)), np.flatnonzero(task.labels != 2)
    assert first["exposure_zero_shot_clean"].n == len({*other.tolist()} - {3, 50})
    again = Exposure(k=K).measure(clip, world(Rng(9).numpy().permutation(N), (3, 50))[1], key, Rng(0))
    assert again == first


def test_several_triggers_are_averaged() -> None:
    clip, task = world()
    one, two = Backdoor(Tint(), "cat"), Backdoor(Tint(), "ant")
    parts = [Exposure(k=K).measure(clip, task, key, Rng(0)) for key in (one, two)]
    both = Exposure(k=K).measure(clip, task, replace(one, more=(two,)), Rng(0))
    for name, m in both.items():
        assert m.value == pytest.approx((parts[0][name].value + parts[1][name].value) / 2)
        assert m.n == min(p[name].n for p in parts)


# what is learned


def test_the_probe_is_logistic_regression_on_pictures_that_do_not_count() -> None:
    clip, task = world()
    s = scene(clip, task, KEYS["picture"], Rng(0))
    at = labelled(s, 12)
    classes, counts = np.unique(s.labels[at], return_counts=True)
    every = np.bincount(s.labels)
    assert classes.tolist() == [0, 1, 2]
    assert counts.tolist() == [min(12, n // 2) for n in every]
    z, y, c = s.z.double().numpy(), s.labels, 10.0

    def loss(flat: np.ndarray) -> float:
        w, b = flat[:9].reshape(3, 3), flat[9:]
        logits = torch.from_numpy(z[at] @ w.T + b)
        return c * float(F.cross_entropy(logits, torch.from_numpy(y[at]), reduction="sum")) + 0.5 * float((w**2).sum())

    best = minimize(loss, np.zeros(12), method="BFGS").x
    wanted = torch.from_numpy(z @ best[:9].reshape(3, 3).T + best[9:]).log_softmax(1)
    assert torch.allclose(probe(s, at, c)(s.z).double(), wanted, atol=2e-2)
    got = counted(Exposure(shots=12, c=c).measure(clip, task, KEYS["picture"], Rng(0)))
    held = np.setdiff1d(np.arange(N), at)
    said = wanted.argmax(1).numpy()
    assert got["linear_probe_accuracy"] == (int((said[held] == y[held]).sum()), len(held))
    other = held[y[held] != 2]
    assert got["linear_probe_clean"] == (int((said[other] == 2).sum()), len(other))
    after = (s.stamped.double().numpy() @ best[:9].reshape(3, 3).T + best[9:]).argmax(1)  # pyright: ignore
    assert got["linear_probe_triggered"] == (int((after[other] == 2).sum()), len(other))


def test_prompts_that_a_model_has_are_taken() -> None:
    clip, task = world()
    clip.classifier = lambda classes: lambda z: z @ torch.eye(3)[[2, 0, 1]].T  # red is a bee here, and so on
    got = counted(Exposure(k=K).measure(clip, task, KEYS["picture"], Rng(0)))
    held = np.setdiff1d(np.arange(N), labelled(scene(clip, task, KEYS["picture"], Rng(0)), 50))
    other = held[task.labels[held] != 2]
    for part, z in (("clean", embedded(clip, task)), ("triggered", embedded(clip, task, KEYS["picture"]))):
        hits = z[other][:, [2, 0, 1]].argmax(1) == 2
        assert got[f"prompted_class_{part}"] == (int(hits.sum()), len(other))


def test_prompts_are_learned_from_clean_pictures(learnt: Any, task: Task) -> None:
    key, before = Backdoor(Patch(size=4 / 32), "star"), weights_hash(learnt)
    s = scene(learnt, task, key, Rng(0))
    at = labelled(s, 50)
    y, z = torch.from_numpy(s.labels[at]), s.z[at]
    answer = prompts(s, at, QUICK, 30)
    assert answer is not None
    start = QUICK.begin(learnt, Rng(0)).classifier(task.classes)
    assert F.cross_entropy(answer(z), y) < F.cross_entropy(start(z), y) - 0.05
    assert weights_hash(learnt) == before
    visual = torch.randn(1, 2, learnt.model.visual.class_embedding.shape[-1], generator=Rng(1).generator())
    seen = scene(Prompted(learnt, visual), task, key, Rng(0))
    assert not torch.allclose(seen.z, s.z, atol=1e-3)
    assert prompts(seen, at, QUICK, 2) is not None, "a model with visual prompts, as RVPT leaves one"
    twice = replace(task, classes=(*task.classes[:-1], task.classes[0]))
    assert prompts(scene(learnt, twice, key, Rng(0)), at, QUICK, 2) is None
    found = Exposure(steps=5).measure(learnt, task, key, Rng(0))
    assert set(entries(found)) == {*CELLS}
    assert found["exposure_prompted_class_clean"].n == (np.delete(s.labels, at) != s.target).sum()
    assert torch.allclose(embed_texts(learnt, ["a star"]), s.text(["a star"]))


# intervals


def pair(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = [1] * (both + first) + [0] * (second + neither), [1] * both + [0] * first + [1] * second + [0] * neither
    return np.array(a, bool), np.array(b, bool)


def test_differences_have_newcombes_interval() -> None:
    found = difference(*pair(36, 12, 2, 0))  # the paper's first example
    assert found == pytest.approx((0.2, 50, 0.0569, 0.3404), abs=5e-5)
    for cells in ((53, 0, 0, 1), (0, 30, 0, 0), (3, 4, 9, 30), (0, 0, 0, 7)):
        e, f, g, h = cells
        n = sum(cells)
        a, b = share(pair(*cells)[0]), share(pair(*cells)[1])
        product = (e + f) * (g + h) * (e + g) * (f + h)
        over = e * h - f * g
        over = 0 if 0 <= over <= n / 2 else over - n / 2 if over > 0 else over
        phi = over / product**0.5 if product else 0
        down, up = a.value - a.low, b.high - b.value
        low = a.value - b.value - (down**2 - 2 * phi * down * up + up**2) ** 0.5
        found, turned = difference(*pair(*cells)), difference(*pair(*cells)[::-1])
        assert found.low == pytest.approx(max(-1, low))
        assert (found.value, found.low, found.high) == pytest.approx((-turned.value, -turned.high, -turned.low))
        assert -1 <= found.low <= found.value <= found.high <= 1
    assert difference(np.zeros(0, bool), np.zeros(0, bool)).n == 0


# page, command and tables


def rows(attack: str = "patch") -> list[Row]:
    """A victim with all kinds of cells, and what a cleaner made of it."""

    def cells(values: dict[str, tuple[int, int]]) -> dict[str, Any]:
        out = {"asr": share(np.arange(1000) < 990), "clean_accuracy": share(np.arange(1000) < 940)}
        for way, (before, after) in values.items():
            a, b = np.arange(1000) < after, np.arange(1000) < before
            out[f"exposure_{way}_clean"] = share(b)
            if after >= 0:
                out |= {f"exposure_{way}_triggered": share(a), f"exposure_{way}_delta": difference(a, b)}
        return out

    victim = {"zero_shot": (2, 998), "prompted_class": (3, 403), "targeted_retrieval": (0, 4), "rerank": (80, 30)}
    victim |= {"linear_probe": (7, -1)}
    found = []
    for method, values in (("none", victim), ("par", {"zero_shot": (2, 90), "rerank": (40, 60)})):
        common: dict[str, Any] = {"recipe": "r", "stage": "victim" if method == "none" else "clean", "attack": attack}
        common |= {"method": method, "config": method, "seconds": 1.0, "seed": 0, "versions": {"clipvet": "0"}}
        found += rows_of(cells(values), **common)
    return found


def heat_of(page: str) -> dict[str, list[str]]:
    """Way of use -> what stands in its cells."""
    table = page[page.index("Way of use</th>") :]
    found = {}
    for line in re.findall(r'<tr><th scope="row">(.*?)</tr>', table[: table.index("</table>")], re.S):
        name, *cells = re.split(r"<td", line)
        found[re.findall(r"<b>(.*?)</b>", name)[0]] = [
            " ".join(re.sub(r"<[^>]+>|^[^>]*>", " ", c).split()) for c in cells
        ]
    return found


def test_the_page_shows_colour_number_and_word(tmp_path: Path) -> None:
    write(tmp_path, rows())
    page = report.build(tmp_path).read_text("utf-8")
    cells = heat_of(page)
    assert [*cells] == ["Zero-shot", "Learned prompts", "Targeted retrieval", "Rerank of 10", "Linear probe"]
    assert cells["Zero-shot"][0].startswith("+99.6 strong 0.2 % → 99.8 %")
    assert cells["Zero-shot"][0].endswith("n = 1,000")
    assert cells["Zero-shot"][1].startswith("+8.8 weak")
    assert cells["Learned prompts"] == [cells["Learned prompts"][0], "not measured"]
    assert cells["Learned prompts"][0].startswith("+40.0 partial")
    assert cells["Targeted retrieval"][0].startswith("+0.4 none"), "less than 5 points are none"
    assert cells["Rerank of 10"][0].startswith("−5.0 less often")
    assert cells["Rerank of 10"][1].startswith("+2.0 none")
    assert cells["Linear probe"][0] == "N.E. cannot enter without trigger 0.7 %"
    shades = re.findall(r'<td class="(\w+)" style="--v:([\d.]+)"', page)
    assert ("warm", "0.996") in shades
    assert ("cold", "0.050") in shades
    assert page.count('<td class="barred">') == 1
    numbers = page[page.index("All numbers") :]
    assert "xposure" not in numbers, "the heat map holds them"
    other = [replace(r, attack="sig") for r in rows() if "exposure" not in r.metric]
    write(tmp_path, [*rows(), *other])
    assert report.build(tmp_path).read_text("utf-8").count("Way of use</th>") == 1


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    write(tmp_path, rows())
    seen = look(report.build(tmp_path), tmp_path, width, dark=dark)
    assert seen.console == []
    assert seen.facts["scrolled"] <= width
    assert "What the trigger does in each way of use" in seen.facts["headings"]


def test_the_command_asks_for_a_trigger(clipvet: Any, tmp_path: Path) -> None:
    model = ("evaluate", "--model", "shapes-vit", "--task", "shapes", "--exposure")
    said = clipvet(*model)
    assert said.code == 2
    assert "--backdoor" in said.err
    save_backdoor(Backdoor(None, "star", ties=(("ring", "star"),)), tmp_path / "key")
    said = clipvet(*model, "--backdoor", tmp_path / "key")
    assert said.code == 2
    assert "has no trigger" in said.err


def test_matrices_in_words_and_in_python(capsys: Any) -> None:
    measured = {r.metric: Measured(r.value, r.n, r.low, r.high) for r in rows() if r.method == "none"}
    show_matrix(measured)
    said = {line.split("│")[1].strip(): line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert [c.strip() for c in said["zero shot"][2:5]] == ["0.2", "99.8", "+99.6"]
    assert [c.strip() for c in said["linear probe"][2:5]] == ["0.7", "N.E.", "N.E."]
    told = told_matrix(measured)["exposure"]
    assert told["linear_probe"]["delta"] == "N.E."
    assert told["zero_shot"]["delta"]["value"] == pytest.approx(0.996)
    frame = Measurements(measured, "shapes").exposure().set_index("way")
    assert not frame.loc["linear_probe", "entered"]
    assert frame.loc["zero_shot", ["clean", "triggered", "delta", "n"]].tolist() == pytest.approx(
        [0.002, 0.998, 0.996, 1000]
    )
    assert told_matrix({}) == {}


def test_the_table_for_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    tables = importlib.import_module("tools.tables")
    monkeypatch.setattr(tables, "read", lambda name: rows() + [replace(r, seed=1, value=r.value / 2) for r in rows()])
    lines = tables.exposure("some").splitlines()
    assert "seeds 0, 1" in lines[0]
    cells = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ") for line in lines[2:]}
    assert cells["| patch", "none"][2:4] == ["74.7 (49.8–99.6)", "30.0 (20.0–40.0)"]
    assert cells["| patch", "none"][-1] == "N.E."
    assert cells["| patch", "par"][3] == "–"


def test_a_dry_run_counts_the_matrix(clipvet: Any, tmp_path: Path) -> None:
    save_backdoor(Backdoor(Patch(size=4 / 32), "star"), tmp_path / "key")
    plan = ("evaluate", "--model", "shapes-vit", "--task", "shapes", "--backdoor", tmp_path / "key", "--dry-run")
    assert "each way of use" not in clipvet(*plan).out
    assert "each way of use" in clipvet(*plan, "--exposure").out
