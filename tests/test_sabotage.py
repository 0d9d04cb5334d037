"""The contract tests catch whoever breaks a promise, and nobody else."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import clipvet

HERE = Path(__file__).parent

CARD = '''"""A method that breaks a promise.

    f' = f

paper:   none
needs:   nothing
differs: nothing known
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from clipvet.models.adapter import clone
{extra}

@dataclass(frozen=True)
class Saboteur:
    needs: ClassVar[str] = "weights only"

    def {verb}:
'''

CLEAN, STAMP, SCORE = "clean(self, clip, pairs, rng)", "stamp(self, images, keys)", "score(self, clip, pairs, rng)"
AGREE = "from clipvet.engine.embed import embed_pairs\nfrom clipvet.filters._features import aligned\n"
COSINE = """\
        found = embed_pairs(clip, pairs)
        score = -(found.z * found.w).sum(1)
        return aligned({what}, found.kept, len(pairs))
"""
TRAIN = """\
        with torch.no_grad():
            for p in clip.parameters():
                p.add_({what})
        return clip
"""
INSPECT = "inspect(self, clip, pictures, classes, templates, rng)"
FOUND = "from clipvet.scan.heads import head_of, pixels, shares\nfrom clipvet.types import Finding\n"
LARGEST = """\
        share = shares(head_of(clip, templates)(classes)(pixels(clip, pictures, 1)).detach())
        return Finding({what}, classes[int(share.argmax())])
"""
SABOTAGE = {  # method: its verb, the body, a further import, the test that must fail
    "cleaners/lazy": (CLEAN, "        return clip\n", "", "test_training_does_something"),
    "cleaners/inplace": (CLEAN, TRAIN.format(what="0.01"), "", "test_training_leaves_its_inputs_alone"),
    "cleaners/ambient": (
        CLEAN,
        "        clip = clone(clip)\n" + TRAIN.format(what="0.01 * torch.randn(p.shape)"),
        "",
        "test_training_draws_from_its_rng_alone",
    ),
    "cleaners/copycat": (
        CLEAN,
        "        return Finetune(epochs=0.5, batch=128).clean(clip, pairs, rng)\n",
        "from clipvet.cleaners.finetune import Finetune\n",
        "test_file_is_one_frozen_dataclass_with_one_verb_and_no_sibling",
    ),
    "triggers/overflow": (STAMP, "        return images * 1.5\n", "", "test_stamp_keeps_shape_range_and_input"),
    "triggers/scribble": (
        STAMP,
        "        images[:, :, :4] = 0.5\n        return images.clone()\n",
        "",
        "test_stamp_keeps_shape_range_and_input",
    ),
    "triggers/herd": (
        STAMP,
        "        return (images + images.mean((0, 2, 3), keepdim=True)) / 2\n",
        "",
        "test_stamp_does_not_depend_on_the_batch",
    ),
    "filters/backwards": (SCORE, COSINE.format(what="-score"), AGREE, "test_higher_is_more_suspect"),
    "filters/deaf": (SCORE, COSINE.format(what="0 * score"), AGREE, "test_score_does_something"),
    "filters/jumpy": (
        SCORE,
        COSINE.format(what="score + 0.001 * torch.rand(len(score))"),
        AGREE,
        "test_score_draws_from_its_rng_alone",
    ),
    "filters/orderly": (
        SCORE,
        COSINE.format(what="score + 1e-4 * torch.arange(len(score))"),
        AGREE,
        "test_score_follows_its_pair",
    ),
    "filters/dull": (
        SCORE,
        COSINE.replace("found.kept, len(pairs)", "found.kept - found.kept + range(len(score)), len(score)").format(
            what="score"
        ),
        AGREE,
        "test_unreadable_pictures_have_no_score",
    ),
}

SABOTAGE |= {
    "inspectors/upside_down": (
        INSPECT,
        LARGEST.format(what="-float(share.max())"),
        FOUND,
        "test_a_backdoored_model_is_more_suspect",
    ),
    "inspectors/restless": (
        INSPECT,
        LARGEST.format(what="float(share.max()) + 1e-5 * float(torch.rand(()))"),
        FOUND,
        "test_inspection_draws_from_its_rng_alone",
    ),
    "inspectors/alphabetical": (
        INSPECT,
        LARGEST.format(what="float(share.max()) + 0.01 * len(classes[0]) * (classes[0] > classes[-1])"),
        FOUND,
        "test_the_order_of_classes_plays_no_part",
    ),
}

HONEST = ("par", "patch", "cosine", "dao", "random", "neural_cleanse")  # stand beside them and must pass


def test_each_sabotage_is_caught_and_blamed_on_its_author(tmp_path):
    shutil.copytree(
        Path(clipvet.__file__).parent, tmp_path / "src/clipvet", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "tests").mkdir()
    for name in ("conftest.py", "typed.py", "test_contracts.py"):
        shutil.copy(HERE / name, tmp_path / "tests")
    shutil.copy(HERE.parent / "pyproject.toml", tmp_path)
    for name, (verb, body, extra, _) in SABOTAGE.items():
        (tmp_path / f"src/clipvet/{name}.py").write_text(CARD.format(verb=verb, extra=extra) + body)

    def python(*args):
        env = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    where = python("-c", "import clipvet; print(clipvet.__file__)")[1].strip()
    assert where == str(tmp_path / "src/clipvet/__init__.py")  # not the installed one
    judged = " or ".join([*(name.partition("/")[2] for name in SABOTAGE), *HONEST])
    run = ("-m", "pytest", "tests/test_contracts.py", "-k", judged, "-rfE", "--tb=no", "-p", "no:cacheprovider")
    code, told = python(*run)
    assert code == 1, told
    caught = defaultdict(set)
    for test, method in re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)\[(?:\w+-)*(\w+)\]", told, re.MULTILINE):
        caught[method].add(test)
    assert len(re.findall(r"^(?:FAILED|ERROR) ", told, re.MULTILINE)) == sum(map(len, caught.values())), told
    caught["scribble"].discard("test_stamp_does_something")  # it compares with the input, which was written to
    blamed = {name.partition("/")[2]: {test} for name, (*_, test) in SABOTAGE.items()}
    assert caught == blamed, told
    assert "FAILED tests/test_contracts.py::test_training_does_something[cleaners-lazy]" in told
