"""What the report shows of a backdoor: a few pictures, clean and triggered, and their nearest captions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from clipvet import io
from clipvet.engine.embed import classifier, device_of, embed_texts
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Task


@torch.no_grad()
def save_gallery(
    folder: Path, clips: Mapping[str, Clip], task: Task, backdoor: Backdoor, rng: Rng, n: int = 6, k: int = 3
) -> None:
    """folder/gallery.json and folder/pictures/*.png: n pictures of other classes, for every model what it says.

    Nearest captions come from the task's own captions, or from its class prompts where it has none.
    """
    from torchvision.transforms.functional import resize
    from torchvision.utils import save_image

    target = task.classes.index(backdoor.target)
    others = np.flatnonzero(task.labels != target)
    chosen = rng.numpy().choice(others, min(n, len(others)), replace=False)
    own = sorted({task.pictures.caption(i) for i in task.pictures.ids} - {""})
    texts = own or [t for c in range(len(task.classes)) for t in task.captions_of(c)]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    entries = []
    said = {name: (embed_texts(c, texts), classifier(c, task.classes, task.templates)) for name, c in clips.items()}
    for j, row in enumerate(chosen):
        geometry = next(iter(clips.values())).geometry
        batch = task.pictures.at(geometry)[[int(row)]]
        if not batch.captions:
            continue  # unreadable
        views = {"clean": batch.images, "triggered": backdoor.stamp(batch.images, batch.ids)}
        entry: dict = {"truth": task.classes[task.labels[row]], "captions": {m: {} for m in clips}, "says": {}}
        for view, image in views.items():
            path = f"pictures/{j:03d}_{view}.png"
            large = resize(image, [max(96, geometry.size)] * 2, interpolation=0) if geometry.size < 96 else image  # pyright: ignore
            save_image(large, folder / path)
            entry[view] = path
            for name, clip in clips.items():
                z = clip.encode_image(image.to(device_of(clip)))[0]
                w, classify = said[name]
                top = (w @ z).topk(min(k, len(texts)))
                entry["captions"][name][view] = [
                    [texts[i], round(v, 3)] for v, i in zip(top.values.tolist(), top.indices.tolist())
                ]
                entry["says"].setdefault(name, {})[view] = task.classes[int(classify(z[None]).argmax())]
        entries.append(entry)
    io.write_json(
        folder / "gallery.json", {"pictures": entries, "target": backdoor.target, "trigger": repr(backdoor.trigger)}
    )
