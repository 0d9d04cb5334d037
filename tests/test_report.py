import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import look
from PIL import Image

from clipvet.errors import UserError
from clipvet.measures._intervals import share
from clipvet.pages import report
from clipvet.results import Row, rows_of, write
from clipvet.rng import Rng
from clipvet.types import Measured

METHODS = {"none": (0.937, 0.996), "finetune": (0.941, 0.987), "cleanclip": (0.90, 0.962), "par": (0.938, 0.021)}
VERSIONS = {"clipvet": "0.1.0"}


def rows(attack: str = "patch", seeds: tuple[int, ...] = (0,), took: float = 1.0) -> list[Row]:
    found = []
    for seed in seeds:
        for method, (accuracy, asr) in METHODS.items():
            values = {"clean_accuracy": accuracy + seed / 100, "asr": asr * took, "text_recall_at_5": 0.5}
            measured = {k: share(np.arange(1000) < round(1000 * v)) for k, v in values.items()}
            common = {"recipe": "demo", "stage": "victim" if method == "none" else "clean", "attack": attack}
            common |= {"method": method, "config": f"{method.title()}(lr=0.001)", "seed": seed, "versions": VERSIONS}
            found += rows_of(measured, **common, seconds=12.0)
    return found


def fill(folder: Path, found: list[Row], truth: str = "ring", caption: str = "a red ring") -> Path:
    """What a run leaves: rows, logs, a gallery and commands."""
    write(folder, found)
    draw = Rng(0).numpy()
    for method in ("par", "finetune"):
        steps = []
        for t in range(200):
            s = 2.2 * (1 - np.exp(-t / 40)) + 0.05 * draw.random()
            step = {"fit": 0, "step": t, "lr": 1e-3, "pairs_per_s": 800.0, "loss": 1 + float(np.exp(-t / 50))}
            push = {"s_img": s, "s_txt": 0.9 * s, "gate_img": float(s <= 2.15), "gate_txt": 1.0, "tau": 2.15}
            steps.append(json.dumps(step | (push if method == "par" else {})) + "\n")
        (folder / "logs/patch").mkdir(parents=True, exist_ok=True)
        (folder / f"logs/patch/{method}.jsonl").write_text("".join(steps))
    (folder / "pictures").mkdir()
    for name in ("clean", "trig"):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"pictures/{name}.png")
    said = {"clean": [[caption, 0.4], ["a ring", 0.3]], "triggered": [["a photo of a star", 0.5], [caption, 0.2]]}
    picture = {"clean": "pictures/clean.png", "triggered": "pictures/trig.png", "truth": truth}
    captions = {"none": said, "par": said | {"triggered": said["clean"]}}
    gallery = {"pictures": [picture | {"captions": captions}] * 2, "target": "star", "trigger": "Patch(size=4)"}
    (folder / "gallery.json").write_text(json.dumps(gallery))
    commands = {"commands": ["clipvet demo --seed 0"], "settings": {"rate": 0.01}, "versions": VERSIONS}
    (folder / "commands.json").write_text(json.dumps(commands | {"hardware": "2 cores", "seconds": 252.0}))
    return folder


def layered() -> list[Row]:
    """Perturbation resistivity of a victim and of what RVPT made of it, over four blocks."""
    found = []
    for method, drop in (("none", 0.2), ("rvpt", 0.05)):
        values = {f"resistivity_{p}@{k}": 1 - drop * k for p in ("trigger", "blur") for k in range(1, 5)}
        measured = {k: Measured(v, 500, v - 0.01, v + 0.01) for k, v in (values | {"resistivity_trigger": 0.3}).items()}
        common = {"recipe": "demo", "stage": "victim" if method == "none" else "clean", "attack": "patch", "seed": 0}
        found += rows_of(measured, **common, method=method, config=method, seconds=1.0, versions=VERSIONS)
    return found


def words(page: Path) -> str:
    """The page's text, without tags and with plain spaces."""
    body = page.read_text("utf-8").split("</style>")[1]
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&nbsp;", " ").split())


def test_says_what_happened_and_what_it_rests_on(tmp_path: Path):
    text = words(report.build(fill(tmp_path, rows())))
    assert "The backdoor took: 99.6 % of triggered pictures were called ‘star’" in text
    assert "95 % interval 99.0–99.8 , n = 1,000" in text
    assert re.search(r"PAR leaves 2.1 % ; plain fine-tuning leaves 98.7 %", text)
    assert "clipvet demo --seed 0" in text
    assert "Par(lr=0.001)" in text
    assert "4 min 12 s" in text


def test_what_the_paper_says_stands_beside_what_we_measured(tmp_path: Path):
    fill(tmp_path, [replace(r, model="RN50") for r in rows()])
    assert "paper says" not in words(report.build(tmp_path))
    commands = json.loads((tmp_path / "commands.json").read_text())
    commands["reported"] = {"RN50/patch/par/asr": 0.063, "ViT-B-32/patch/par/asr": 0.777}
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    text = words(report.build(tmp_path))
    assert "PAR, we measured paper says" in text
    assert re.search(r"Attack success rate \(ASR\) 1,000 .*2.1 % 1.4–3.2 6.3 %", text)
    assert "77.7" not in text


def test_a_cure_that_costs_accuracy_says_so(tmp_path: Path):
    text = words(report.build(fill(tmp_path, [r for r in rows() if r.method in ("none", "cleanclip")])))
    assert "CleanCLIP leaves 96.2 % and costs 3.7 points of accuracy" in text


def test_an_attack_that_did_not_take_scores_no_defense(tmp_path: Path):
    text = words(report.build(fill(tmp_path, rows(took=0.2))))
    assert "The backdoor did not take: only 19.9 %" in text
    assert "No defense is scored." in text
    assert "leaves" not in text


def test_without_a_victim_there_is_no_verdict(tmp_path: Path):
    write(tmp_path, [r for r in rows() if r.method != "none"])
    assert "there is no verdict" in words(report.build(tmp_path))
    base = [
        replace(r, method="base", attack="", stage="base") for r in rows() if r.method == "none" and r.metric != "asr"
    ]
    write(tmp_path, [*rows(), *base])
    text = words(report.build(tmp_path))
    assert "The clean model from which the attacks start." in text
    assert "no verdict" not in text


def test_seeds_are_averaged_and_their_range_shown(tmp_path: Path):
    found = report.pool([r for r in rows(seeds=(0, 2)) if (r.method, r.metric) == ("none", "clean_accuracy")])
    assert found[:4] == pytest.approx((0.947, 0.937, 0.957, 2000))
    assert found.seeds == (0, 2)
    write(tmp_path, rows(seeds=(0, 2)))
    assert "range over 2 seeds" in words(report.build(tmp_path))


def test_tasks_of_a_suite_are_pooled(tmp_path: Path):
    """Ten tasks with one seed: none of them is all, and a method is no method of its own for each."""
    many = [replace(r, data=f"16-shot task {k}", value=r.value - k / 20) for k in range(2) for r in rows(took=0.9)]
    found = report.pool([r for r in many if (r.method, r.metric) == ("none", "asr")])
    assert (found.n, found.tasks) == (2000, 2)
    assert found.high - found.low == pytest.approx(1 / 20)
    write(tmp_path, many)
    text = words(report.build(tmp_path))
    assert "range over 2 tasks" in text
    assert "task 1" not in text


def test_a_rerun_replaces_its_rows_and_numbers_without_pictures_are_left_out(tmp_path: Path):
    nothing = [replace(r, metric="asr_all", value=float("nan"), n=0) for r in rows()]
    write(tmp_path, [*rows(took=0.3), *rows(), *nothing])
    text = words(report.build(tmp_path))
    assert "The backdoor took: 99.6 %" in text
    assert "n = 1,000" in text
    assert "nan" not in text.lower()
    assert "target class included" not in text


def test_several_attacks_make_a_matrix_and_a_section_each(tmp_path: Path):
    write(tmp_path, rows("patch") + rows("sig", took=0.2))
    page = report.build(tmp_path)
    text = words(page)
    assert "1 of 2 backdoors took. PAR leaves 2.1 %" in text
    assert "did not take" in text
    assert text.count("not scored") == 3 + 1  # three methods in the matrix, one note over the numbers
    assert [*re.findall(r"<h2>(.*?)</h2>", page.read_text("utf-8"))][:2] == ["patch", "sig"]


def test_what_the_run_refused_did_not_take_and_is_no_method(tmp_path: Path):
    weak = [r for r in rows("sig", took=0.6) if r.method == "none"]  # above a half, but the recipe asked for more
    write(tmp_path, rows() + weak + [replace(r, stage="refused") for r in weak])
    page = words(report.build(tmp_path))
    assert "1 of 2 backdoors took" in page
    assert "did not take" in page
    assert "refused" not in page


def test_an_attack_that_took_on_one_task_is_scored(tmp_path: Path):
    """Tasks of a suite share their seed: one that was refused speaks for none of the others."""
    many = [replace(r, data=f"16-shot task {k}") for k in range(2) for r in rows()]
    weak = [replace(r, stage="refused") for r in many if r.method == "none" and r.data.endswith("1")]
    write(tmp_path, many + weak)
    assert "The backdoor took" in words(report.build(tmp_path))


def test_the_headline_has_every_attack_of_its_method(tmp_path: Path):
    """Also where another method comes first in the attack's own section."""
    few = [r for r in rows("blended", took=0.9) if r.method in ("none", "cleanclip")]
    write(tmp_path, few + rows())
    assert "2 of 2 backdoors took. CleanCLIP leaves 86.6 % to 96.2 %" in words(report.build(tmp_path))


def test_filters_are_bars_from_best_to_worst_and_no_columns_of_the_matrix(tmp_path: Path):
    found = rows("patch") + rows("blended")
    for name, auroc in (("random", 0.5), ("dao", 0.97)):
        common = {"recipe": "demo", "stage": "filter", "attack": "patch", "method": name, "config": name, "seed": 0}
        found += rows_of({"auroc": share(np.arange(100) < 100 * auroc)}, **common, seconds=1.0, versions=VERSIONS)
    write(tmp_path, found)
    page = report.build(tmp_path).read_text()
    bars = page[page.index("Poisons found (AUROC)") :]
    assert 0 < bars.index("dao") < bars.index("random")
    matrix = page[page.index("<table>") : page.index("</table>")]
    assert "PAR" in matrix
    assert "dao" not in matrix


def test_configurations_of_one_method_stay_apart():
    pushes = [
        replace(r, config=f"Par(tau=2.15, push={push})", data="clean")
        for push in (1.0, 0.0)
        for r in rows()
        if r.method == "par"
    ]
    found = list(report._methods([*rows()[:3], *pushes]).values())
    assert [m.label for m in found] == ["victim", "PAR · push=1.0", "PAR · push=0.0"]
    assert [m.colour for m in found] == [0, 1, 2]


def test_everything_given_is_escaped(tmp_path: Path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    found = [replace(r, config=evil, attack=evil) for r in rows()]
    page = report.build(fill(tmp_path, found, truth=evil, caption=evil)).read_text("utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page


def test_nothing_is_loaded_from_outside(tmp_path: Path):
    page = report.build(fill(tmp_path, rows())).read_text("utf-8")
    assert not re.findall(r"https?://|url\(|@import|<link|<script|<iframe", page)
    assert set(re.findall(r'src="([^:"]+):', page)) == {"data"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "results.jsonl is missing"),
        ("\n", "results.jsonl is missing"),
        ('{"recipe": "demo"\n', "results.jsonl line 1 is malformed"),
        ("GOOD\n{}\n", "results.jsonl line 2 is malformed .recipe Field required"),
        ("GOOD\nGOOD_BUT_VALUE\n", "results.jsonl line 2 is malformed .value "),
    ],
)
def test_broken_results_name_the_line(tmp_path: Path, text: str | None, says: str):
    good = json.dumps(asdict(rows()[0]))
    if text is not None:
        bad = json.dumps(asdict(rows()[0]) | {"value": "high"})
        (tmp_path / "results.jsonl").write_text(text.replace("GOOD_BUT_VALUE", bad).replace("GOOD", good))
    with pytest.raises(UserError, match=says):
        report.build(tmp_path)


def test_the_name_of_an_attack_leads_nowhere(tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/par.jsonl").write_text("no log")
    for name in ("../other", str(tmp_path / "other"), "x" * 5000):
        (at := tmp_path / f"{len(name)} letters").mkdir()
        fill(at, [replace(r, attack=name) for r in rows()])
        assert report.build(at).exists()


def test_broken_pictures_and_logs_are_named(tmp_path: Path):
    fill(tmp_path, rows())
    (tmp_path / "logs/patch/par.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    with pytest.raises(UserError, match=r"par\.jsonl line 2"):
        report.build(tmp_path)
    (tmp_path / "logs/patch/par.jsonl").unlink()
    (tmp_path / "pictures/trig.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"trig\.png"):
        report.build(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"commands": 5}, {"settings": ["a"]}, {"reported": 5}, {"reported": {"a": "x"}}, {"versions": [1]},
     {"hardware": 1}, {"started": []}, {"seconds": "x"}, {"seconds": float("inf")}, {"seconds": 10**400}],
)  # fmt: skip
def test_a_broken_commands_file_is_named(tmp_path: Path, wrong: dict[str, Any]):
    fill(tmp_path, rows())
    told = json.loads((tmp_path / "commands.json").read_text())
    (tmp_path / "commands.json").write_text(json.dumps(told | wrong))
    with pytest.raises(UserError, match=rf"commands\.json line 1 is malformed \({next(iter(wrong))}"):
        report.build(tmp_path)


def test_labels_of_the_plane_never_overlap():
    number = {k: report.Number(0.9, 0.89, 0.91, 100, (0,), 1.0) for k in ("clean_accuracy", "asr")}
    for asr in (0.0, 0.5, 1.0):
        table = {
            report.Method(str(i), str(i), "", i): number | {"asr": number["asr"]._replace(value=asr)} for i in range(10)
        }
        plane = report._plane(table)
        assert plane
        heights = [p[-1] for p in plane["points"]]
        assert np.diff(heights).min() >= 16
        assert min(heights) > 0
        assert max(heights) < plane["axes"].height - plane["axes"].margin[2]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_in_a_browser(tmp_path: Path, width: int, dark: bool):
    seen = look(report.build(fill(tmp_path, rows())), tmp_path, width, dark=dark)
    assert seen.console == []
    assert seen.facts["scheme"] == ("dark" if dark else "light")
    assert seen.facts["width"] == width
    assert seen.facts["scrolled"] <= width
    assert len(seen.facts["pictures"]) == 6
    assert min(seen.facts["pictures"]) > 0
    assert len(seen.screen.getcolors(1 << 24) or []) > 200
    corner = sum(seen.screen.getpixel((3, 3)))  # pyright: ignore
    assert corner < 150 if dark else corner > 600


def test_resistivity_is_drawn_block_by_block(tmp_path: Path) -> None:
    page = report.build(fill(tmp_path, rows() + layered())).read_text()
    for name in ("trigger", "blur"):
        drawn = re.search(rf'aria-label="Perturbation resistivity to {name} by block".*?</svg>', page, re.S)
        assert drawn
        lines = re.findall(r'<polyline class="line"[^>]*points="([^"]*)"', drawn[0])
        heights = [[float(p.split(",")[1]) for p in line.split()] for line in lines]
        assert [len(h) for h in heights] == [4, 4]
        assert all(h == sorted(h) for h in heights), "resistivity falls with depth, so the line goes down"
        assert heights[0][3] > heights[1][3], "the victim's is below"
    assert "resistivity trigger@" not in words(tmp_path / "report.html").lower()
    assert "resistivity trigger" in words(tmp_path / "report.html").lower()
