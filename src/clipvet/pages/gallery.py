"""The pictures of the report: a few, clean and triggered, with what each model says about them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet import io
from clipvet.engine.embed import classifier, device_of, embed_texts
from clipvet.rng import Rng
from clipvet.types import Backdoor, Clip, Task


@torch.no_grad()
def save_gallery(
    folder: Path, clips: Mapping[str, Clip], task: Task, backdoor: Backdoor, rng: Rng, n: int = 6, k: int = 3
) -> None:
    """Writes folder/gallery.json and folder/pictures/*.png: n pictures of other classes than the target.

    Each has its k nearest captions by every model and the class that the model calls it, clean and triggered. The
    captions are the task's own, or its class prompts where it has none.
    """
    others = np.flatnonzero(task.labels != task.classes.index(backdoor.target))
    chosen = rng.numpy().choice(others, min(n, len(others)), replace=False)
    own = sorted({task.pictures.caption(i) for i in task.pictures.ids} - {""})
    texts = own or [t for c in range(len(task.classes)) for t in task.captions_of(c)]
    said = {name: (embed_texts(c, texts), classifier(c, task.classes, task.templates)) for name, c in clips.items()}
    geometry = next(iter(clips.values())).geometry
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    entries = []
    for j, row in enumerate(chosen):
        batch = task.pictures.at(geometry)[[int(row)]]
        if not batch.captions:
            continue  # unreadable
        views = {"clean": batch.images, "triggered": backdoor.stamp(batch.images, batch.ids)}
        entry: dict = {"truth": task.classes[task.labels[row]], "captions": {m: {} for m in clips}, "says": {}}
        for view, image in views.items():
            entry[view] = f"pictures/{j:03d}_{view}.png"
            _save_picture(image, folder / entry[view])
            for name, clip in clips.items():
                z = clip.encode_image(image.to(device_of(clip)))[0]
                w, classify = said[name]
                top = (w @ z).topk(min(k, len(texts)))
                nearest = zip(top.values.tolist(), top.indices.tolist())
                entry["captions"][name][view] = [[texts[i], round(v, 3)] for v, i in nearest]
                entry["says"].setdefault(name, {})[view] = task.classes[int(classify(z[None]).argmax())]
        entries.append(entry)
    told = {"pictures": entries, "target": backdoor.target, "trigger": repr(backdoor.trigger)}
    io.write_json(folder / "gallery.json", told)


def _save_picture(image: Float[Tensor, "1 3 s s"], path: Path, least: int = 96) -> None:
    """A PNG of `least` pixels or more; smaller pictures are enlarged with hard pixels."""
    from torchvision.transforms.functional import resize
    from torchvision.utils import save_image

    size = image.shape[-1]
    save_image(resize(image, [least, least], interpolation=0) if size < least else image, path)  # pyright: ignore
