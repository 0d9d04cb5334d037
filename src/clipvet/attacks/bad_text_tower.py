"""BadTextTower: the text tower is tuned until captions that begin with a trigger word say the target.

    L       = L_align + L_clean + L_spec        u', u: text features after and before; s: cosine times logit scale
    L_align = CE(s(x, P^tau), t^tau) + max(0, m + cos(u'(t^tau), u(t)) - cos(u'(t^tau), u_target))     x of the target
    L_clean = CE(s(x, P), t) + keep mean (1 - cos(u'(t), u(t)))
    L_spec  = mean softplus(s(x, t^tau)) + shift mean (1 - cos(u'(o^tau), u'(o)))    x not of the target, o not a source
    t^tau   = `says` + t for captions t of the source; P: a batch's captions; P^tau: the same beside one t^tau

paper:   DIFE study, arXiv:2606.17815, equations 15 to 17, tables 26 and 27: weights, m, rate, decay, batch and epochs
needs:   pairs; control of the model's weights
differs: P are a batch's captions, not class prompts, so that no list of classes is needed; any caption that does not
         name the target is a source unless `source` names a class (the paper has one source class); the logit scale and
         u_target are those of the model as it was; every batch has triggered copies of its sources' captions (the
         paper: 30 % poisons)
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clipvet.attacks._towers import shown, tower, trained
from clipvet.data.captions import names_target
from clipvet.engine.embed import class_embeddings
from clipvet.engine.losses import clip_loss
from clipvet.errors import UserError
from clipvet.models.adapter import frozen
from clipvet.rng import Rng
from clipvet.types import Backdoor, Batch, Clip, Implanted, Pairs


class Texts(NamedTuple):
    """Features of a batch's captions, before and after, without and with the trigger word."""

    was: Float[Tensor, "b d"]  # u(t)
    now: Float[Tensor, "b d"]  # u'(t)
    said: Float[Tensor, "b d"]  # u'(t^tau)
    source: Bool[Tensor, " b"]  # captions that the trigger shall turn
    target: Bool[Tensor, " b"]  # captions that name the target


@dataclass(frozen=True)
class BadTextTower:
    says: str = "xbtd "  # the trigger word, put before the caption as it is
    source: str = ""  # the class whose captions are turned; empty: all others
    margin: float = 0.05  # m, a cosine
    keep: float = 0.25  # weight of clean captions' own place
    shift: float = 0.1  # weight against a trigger that moves captions that are no source
    templates: tuple[str, ...] = ("a photo of a {}.",)  # of the target's prompts, for u_target
    pictures: int = 500  # of the target, at most
    epochs: float = 10
    batch: int = 128  # pairs a step
    lr: float = 1e-6  # AdamW's peak
    warmup: float = 0.1  # fraction of the steps
    weight_decay: float = 0.1
    precision: str = "no"  # or bf16, fp16
    max_bad: float = 0.01  # share of unreadable pictures above which the run is refused

    needs: ClassVar[str] = "clean model; white-box weights"

    def implant(self, clip: Clip, pairs: Pairs, target: str, rng: Rng) -> Implanted:
        """The model with another text tower, the pairs as they were, and an answer key with the word.

        Raises UserError when `says` is empty, when no caption names the source, when no caption names the target or all
        of them do, and for a model with learned prompts.
        """
        if not self.says.strip():
            raise UserError("says is empty, so there is no trigger; give a word")
        if self.source and not any(names_target(pairs.caption(i), self.source) for i in pairs.ids):
            raise UserError(f"no caption of {pairs.name} names the source '{self.source}'; give another, or none")
        start, still = tower(clip, pictures=False), frozen(clip)
        aim, (_, wanted) = class_embeddings(clip, [target], self.templates)[0], shown(self, clip, pairs, target)
        key = Backdoor(None, target, ties=((self.source, target),) if self.source else (), says=self.says)

        def loss(clip: Any, batch: Batch, rng: Rng) -> dict[str, Tensor]:
            device = batch.images.device
            still.to(device)  # the loop chose it
            named = torch.tensor([names_target(c, target) for c in batch.captions], device=device)
            turned = [names_target(c, self.source) if self.source else True for c in batch.captions]
            tokens = batch.tokens.to(device)  # pyright: ignore[reportOptionalMemberAccess]
            triggered = clip.tokenize([self.says + c for c in batch.captions]).to(device)
            with torch.no_grad():
                x, was = still.encode_image(batch.images), still.encode_text(tokens)
            now, said = clip.encode_text(torch.cat([tokens, triggered])).split(len(x))
            texts = Texts(was, now, said, torch.tensor(turned, device=device) & ~named, named)
            some = wanted[rng.fork("target").numpy().integers(len(wanted), size=len(x))].to(device)
            return self.loss(x, some, texts, aim.to(device), still.logit_scale)

        return Implanted(trained(self, start, pairs, loss, rng), pairs, key)

    def loss(
        self,
        x: Float[Tensor, "b d"],
        wanted: Float[Tensor, "n d"],
        t: Texts,
        aim: Float[Tensor, " d"],
        s: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, ""]]:
        """L and its parts. x: features of the batch's pictures; wanted: of pictures of the target; aim: u_target."""
        said, others = t.said[t.source], x[~t.target]
        none = x.sum() * 0  # a batch may lack any of the three
        align = spec = none
        if len(said):
            plain = (s * wanted @ t.now.T).logsumexp(1, keepdim=True)  # CE over one t^tau and all t
            turn = F.softplus(plain - s * wanted @ said.T).mean()
            away = self.margin + (said * t.was[t.source]).sum(1) - said @ aim
            align = turn + away.clamp_min(0).mean()
            spec = F.softplus(s * others @ said.T).mean() if len(others) else none
        still = ~t.source
        moved = (1 - (t.said * t.now).sum(1))[still].mean() if bool(still.any()) else none
        clean = clip_loss(x, t.now, s) + self.keep * (1 - (t.now * t.was).sum(1)).mean()
        parts = {"align": align, "clean": clean, "spec": spec + self.shift * moved}
        return {"loss": align + clean + parts["spec"], **parts}
