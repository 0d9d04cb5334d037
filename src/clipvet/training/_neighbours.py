"""A pool of recent embeddings, in which an embedding finds its nearest neighbour (NNCLR's support set)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipvet.rng import Rng


class Pool(nn.Module):
    """First in, first out. It starts as random unit vectors; its buffers are saved and resumed with the weights.

    wrap: the part of a batch that passes the end continues at the start; False: it is dropped, as SafeCLIP's public
    code does.
    """

    rows: Tensor
    at: Tensor

    def __init__(self, size: int, dim: int, rng: Rng, wrap: bool = True):
        super().__init__()
        first = torch.randn(size, dim, generator=rng.generator())
        self.register_buffer("rows", nn.functional.normalize(first, dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))
        self.wrap = wrap

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """For each row of z, the pool's row with the largest inner product; without gradient."""
        return self.rows[(z.float() @ self.rows.T).argmax(1)]

    @torch.no_grad()
    def push(self, z: Float[Tensor, "b d"]) -> None:
        """Puts these rows in the places of the oldest."""
        size, at = len(self.rows), int(self.at)
        z = z.detach().to(self.rows.dtype)[-size:]
        if not self.wrap and at + len(z) >= size:
            z = z[: size - at]
            self.rows[at:] = z
            self.at.zero_()
            return
        self.rows[(at + torch.arange(len(z), device=z.device)) % size] = z
        self.at.fill_((at + len(z)) % size)
