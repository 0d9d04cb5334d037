"""Writes a small real data set to disk, arranged like your own files: scikit-learn's 1,797 scans of handwritten digits.

    python examples/digits.py DIR

DIR/train.csv, DIR/clean.csv   pairs of the victim and of the defender, with the columns filepath and title
DIR/test/<digit>/*.png         a zero-shot task, one folder for each class
DIR/templates.txt              the task's templates
DIR/model/                     an untrained model, written by stock open_clip without clipvet
"""

import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = (
    "a scan of the digit {}",
    "the number {} written by hand",
    "a handwritten {}",
    "somebody wrote a {} here",
    "a {} in pencil on white paper",
    "a small grey picture of a {}",
)
PARTS = {"train": slice(0, 1000), "clean": slice(1000, 1400), "test": slice(1400, None)}


def write_pictures(folder: Path, seed: int = 0) -> None:
    """Write pictures (64 px, dark ink on paper, varied in brightness and place), tables and the task."""
    g, scans = np.random.default_rng(seed), load_digits()
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "clean": []}
    order = g.permutation(len(scans.target))
    for part, which in PARTS.items():
        for k in order[which]:
            name, ink = NAMES[scans.target[k]], 1 - scans.images[k] / 16 * g.uniform(0.6, 1.0)
            paper = np.full((64, 64), 1.0)
            top, left = g.integers(4, 13, size=2)
            paper[top : top + 48, left : left + 48] = np.kron(ink, np.ones((6, 6)))
            path = Path(part, name if part == "test" else "", f"{k:04d}.png")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((paper * g.uniform(0.75, 1.0) * 255).astype(np.uint8)).convert("RGB").save(folder / path)
            if part != "test":
                rows[part].append((str(path), PHRASES[g.integers(len(PHRASES))].format(name)))
    for part, lines in rows.items():
        with (folder / f"{part}.csv").open("w", newline="") as f:
            csv.writer(f).writerows([("filepath", "title"), *lines])
    (folder / "templates.txt").write_text("\n".join(p for p in PHRASES[:3]) + "\n")


def write_model(folder: Path) -> None:
    """Write a small untrained CLIP in open_clip's layout, with open_clip and safetensors only."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": {"size": 32}}))
    logging.disable(logging.WARNING)  # it would warn that it found no weights
    torch.manual_seed(0)  # noqa: TID251 open_clip takes no generator
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    logging.disable(logging.NOTSET)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits.py DIR")
    write_pictures(Path(sys.argv[1]))
    write_model(Path(sys.argv[1]) / "model")
