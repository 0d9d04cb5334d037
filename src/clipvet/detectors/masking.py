"""Masking (BackdoorIDS): cover more and more of a picture; a triggered one jumps when its trigger goes, others drift.

    z_k = h(x with the share k / (steps - 1) * 0.95 of its cells covered),  k = 0 .. steps - 1, cells nested
    C   = clusters of z_0 .. z_K by DBSCAN in cosine distance (eps, 2 points)
    score = |C| + largest cosine distance of neighbours z_k, z_{k+1}, halved          (mean over `orders` of the cells)

paper:   BackdoorIDS, arXiv:2603.11664; only the abstract was read: order, cells, eps and the tie-break are ours
needs:   embeddings only
differs: the abstract calls a picture triggered at more than one cluster; here that is the score's whole part, so that
         a threshold is chosen on clean pictures. It sees triggers that can be covered: on four development victims (150
         pictures each) AUROC 0.96 patch, 0.58 BadCLIP, but 0.19 blended and 0.31 WaNet, upside down. eps was chosen
         there among 0.05 to 0.4
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipvet.detectors._each import each
from clipvet.rng import Rng
from clipvet.types import Batch, Clip, Pairs


@dataclass(frozen=True)
class Masking:
    steps: int = 12  # pictures along the path
    most: float = 0.95  # share that is covered at the end
    cells: int = 8  # a side
    orders: int = 2  # random orders of the cells, averaged over
    eps: float = 0.3  # DBSCAN's radius, cosine distance

    needs: ClassVar[str] = "embeddings only"
    phrase: ClassVar[str] = "{score:.2f} clusters while it is covered"

    def detect(
        self, clip: Clip, pictures: Pairs, classes: Sequence[str], templates: Sequence[str], rng: Rng
    ) -> Float[Tensor, " n"]:
        """The number of clusters along the path of every picture, with the largest step as the fraction behind it."""
        orders = [torch.from_numpy(rng.fork("cells", k).numpy().permutation(self.cells**2)) for k in range(self.orders)]
        shares = torch.linspace(0, self.most, self.steps)
        covered = torch.stack([(order.argsort()[None] < (shares * len(order)).round()[:, None]) for order in orders])
        grid = covered.reshape(-1, 1, self.cells, self.cells).float()  # (orders * steps, 1, cells, cells)

        def jumps(rows: Batch) -> Float[Tensor, " b"]:
            size = rows.images.shape[-2:]
            mask = torch.nn.functional.interpolate(grid, size).to(rows.images)
            grey = clip.mean.reshape(1, 3, 1, 1).to(rows.images)
            views = (rows.images[:, None] * (1 - mask) + grey * mask).flatten(0, 1)
            z = torch.nn.functional.normalize(clip.encode_image(views).float(), dim=1)
            paths = z.reshape(len(rows.images), self.orders, self.steps, -1).cpu().numpy()
            return torch.tensor([np.mean([self._score(p) for p in path]) for path in paths])

        return each(clip, pictures, jumps, batch=8)

    def _score(self, path: Float[np.ndarray, "steps d"]) -> float:
        """Clusters of a path, and half its largest step."""
        from sklearn.cluster import DBSCAN

        if not np.isfinite(path).all():
            return float("nan")
        found = DBSCAN(eps=self.eps, min_samples=2, metric="cosine").fit(path).labels_
        step = 1 - (path[:-1] * path[1:]).sum(1).min()
        return len(set(found.tolist()) - {-1}) + float(step) / 2
