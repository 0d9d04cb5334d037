"""The search for assimilation: after which one word does a text tower read all prompts alike?

    min over e  -mean_{i != j} cos(u(e, t_i), u(e, t_j)) + away mean_i cos(u(e, t_i), v(e, t_i))

e is a free token embedding that stands at the beginning, before the prompts t; u is the text tower, v a clean one if
there is one. Several searches run side by side. The token goes through the tower once for all prompts (see
`class_prompts.read`), so a step is cheap.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.engine.embed import device_of
from clipvet.engine.workspace import counting
from clipvet.errors import Unsupported, UserError
from clipvet.models.class_prompts import Suffix, read, tokens_of, tower
from clipvet.rng import Rng
from clipvet.scan.collapse import alike


class Reader:
    """A text tower that reads prompts with a free token before them."""

    def __init__(self, clip: Any, prompts: Sequence[str]):
        """Raises Unsupported where the model has no text tower that can take one, UserError for prompts too long."""
        clip = getattr(clip, "base", clip)
        try:
            self.net = tower(clip)
        except UserError as e:
            raise Unsupported(
                "text tower: not present, or none that reads from the left to its end-of-text token; inspect the "
                "picture tower (--method collapse)"
            ) from e
        tokens, end = tokens_of(clip, prompts)
        tokens, end, most = tokens[:, 1:], end - 1, self.net.positional_embedding.shape[0]  # without the start of text
        if 2 + tokens.shape[1] > most:
            raise UserError(
                f"prompt '{prompts[int(end.argmax())]}' and one more token are too long for this text tower of {most} "
                "tokens; give shorter class names or --templates"
            )
        place = self.net.positional_embedding
        self.suffix = Suffix(self.net.token_embedding(tokens) + place[2 : 2 + tokens.shape[1]], end, end)  # no name
        self.start, self.places = self.net.token_embedding(tokens_of(clip, [""])[0][:, :1]), place[:2]

    def read(self, e: Float[Tensor, "k w"]) -> Float[Tensor, "k c d"]:
        """Features of all prompts after each of k tokens, of length 1."""
        before = torch.cat([self.start.expand(len(e), -1, -1), e[:, None]], 1) + self.places
        return F.normalize(read(self.net, before, self.suffix), dim=-1)

    def width(self) -> tuple[int, float]:
        """The number of components of a token, and the usual length of the vocabulary's."""
        weight = self.net.token_embedding.weight
        return weight.shape[1], float(weight.norm(dim=1).median())


class Assimilated(NamedTuple):
    """Where the k searches ended, judged on fresh prompts."""

    same: Float[Tensor, " k"]  # the mean cosine of two prompts after the word
    before: float  # the same without it
    u: Float[Tensor, "k n d"]  # features of the fresh prompts after the word
    anchor: Float[Tensor, " k"] | None  # `same` in the clean tower, after the same word
    grown: float  # how much more alike the prompts are without the word than in the clean tower; at least 0
    length: Float[Tensor, " k"]  # of the found embedding, in units of the vocabulary's usual length


def assimilate(
    clip: Any,
    anchor: Any | None,
    seen: Sequence[str],
    fresh: Sequence[str],
    searches: int,
    steps: int,
    lr: float,
    away: float,
    rng: Rng,
) -> Assimilated:
    """The searches on the prompts `seen`, judged on the prompts `fresh`. clip and anchor: frozen, with text towers of
    the same width. Raises UserError on a loss that is not finite."""
    own, judge = Reader(clip, seen), Reader(clip, fresh)
    other, compare = (Reader(anchor, p) if anchor is not None else None for p in (seen, fresh))
    w, usual = own.width()
    if other is not None and other.width()[0] != w:
        raise UserError("the reference has another text tower; give the clean model that this one was made from")
    e = torch.randn(searches, w, generator=rng.fork("start").generator()) * usual / w**0.5
    e = e.to(device_of(clip)).requires_grad_()
    adam = torch.optim.Adam([e], lr)
    with counting(steps, "steps") as count:
        for _ in range(steps):
            u = own.read(e)
            loss = -alike(u)
            if other is not None:
                loss = loss + away * (u * other.read(e)).sum(-1).mean(1)
            adam.zero_grad()
            loss.sum().backward()
            if not bool(torch.isfinite(loss).all()):
                raise UserError("the loss of a recovered word is not finite; give whole weights")
            adam.step()
            count(1)
    with torch.no_grad():
        u = judge.read(e)
        plain = alike(F.normalize(clip.encode_text(list(fresh)), dim=-1))
        usually = alike(F.normalize(anchor.encode_text(list(fresh)), dim=-1)) if anchor is not None else plain
        beside = None if compare is None else alike(compare.read(e)).cpu()
        grown = max(0.0, float(plain - usually))
        length = (e.detach().norm(dim=1) / usual).cpu()
        return Assimilated(alike(u).cpu(), float(plain), u.cpu(), beside, grown, length)
