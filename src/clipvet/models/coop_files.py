"""The prompt files of CoOp's and CoCoOp's own code: state dicts of their `prompt_learner`.

    ctx (m, w)                         the context
    token_prefix (c, 1, w)             token embeddings before it, for each class
    token_suffix (c, l, w)             token embeddings after it, for each class
    meta_net.linear1.weight, .bias     CoCoOp's meta-net
    meta_net.linear2.weight, .bias

Their code makes prefix and suffix anew from the class names. clipvet reads from them which classes the prompts were
learned for, and whether the base model is the right one. The files do not say where the class name stands
(CLASS_TOKEN_POSITION): it is given, or told by the run's log or folder name, or else their default, after the context.

paper: Zhou et al., IJCV 2022, arXiv:2109.01134; Zhou et al., CVPR 2022, arXiv:2203.05557
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from clipvet import io
from clipvet.errors import UserError
from clipvet.models.adapter import OpenClip
from clipvet.models.class_prompts import META, PromptTuned, meta_net, tokens_of, tower
from clipvet.types import Clip

FILE = Path("prompt_learner") / "model-best.pth.tar"  # where their `load_model` looks for it
AROUND = ("token_prefix", "token_suffix")
NETS = dict(zip(META, (f"meta_net.linear{k}.{what}" for k in (1, 2) for what in ("weight", "bias"))))


def position_of(path: Path) -> tuple[str, str]:
    """Where the class name stands, as their run tells beside the file, and where it tells so; empty if it does not.

    Their scripts name a run's folder after it (`nctx16_cscFalse_ctpend`), and its log.txt lists all settings.
    """
    for folder in path.absolute().parents[:4]:
        if found := re.search(r"(?:^|_)ctp(front|middle|end)(?:_|$)", folder.name):
            return found[1], f"the folder {folder.name}"
        try:
            with (folder / "log.txt").open(encoding="utf-8", errors="replace") as f:
                said = f.read(2**20)
        except OSError:
            continue
        if found := re.search(r"CLASS_TOKEN_POSITION:\s*['\"]?(front|middle|end)\b", said):
            return found[1], "its run's log.txt"
    return "", ""


def read(path: Path, base: OpenClip, position: str = "end") -> PromptTuned:
    """The prompts of such a file, on their base model. position: of the class name, end, middle or front.

    Raises UserError if it is another kind of file, if each class has a context of its own, or if the prompts were
    learned on another base model.
    """
    state = {k: v.float() for k, v in io.load_weights(path).items()}
    context, net = state.get("ctx"), tower(base)
    if context is None or set(state) - {"ctx", *AROUND, *NETS.values()}:
        raise UserError(
            f"{path} is not a prompt_learner of CoOp or CoCoOp (it holds {', '.join(sorted(state))[:80]}); give theirs"
        )
    if context.ndim != 2:
        raise UserError(f"{path} holds a context for each class; only prompts with one context for all can be read")
    classes = _classes(path, base, state) if all(k in state for k in AROUND) else []
    meta = None
    if any(k in state for k in NETS.values()):
        own = {k: state.get(theirs, torch.empty(0)) for k, theirs in NETS.items()}
        meta = meta_net(own, base.encode_text(["a"]).shape[1], net.token_embedding.weight.shape[1], str(path))
    return PromptTuned(base, context, meta, classes, None, position).to(base.mean.device).eval()


def _classes(path: Path, base: OpenClip, state: dict[str, Tensor]) -> list[str]:
    """The class names, from the embeddings of their tokens. Raises UserError if the base model has other embeddings."""
    prefix, suffix = (state[k] for k in AROUND)
    net = tower(base)
    known = net.token_embedding.weight.detach().cpu().float()
    start, end = tokens_of(base, [""])[0][0, :2].tolist()
    fits = prefix.ndim == suffix.ndim == 3 and prefix.shape[2] == suffix.shape[2] == known.shape[1]
    fits = fits and len(prefix) == len(suffix) > 0 and suffix.shape[1] < len(net.positional_embedding)
    if not fits or not torch.allclose(prefix[0, 0], known[start], atol=1e-3):  # files are often in half precision
        raise UserError(f"{path} was learned on another base model (other token embeddings); give that one")
    names = []
    for rows in suffix:
        ids = torch.cdist(rows, known).argmin(1).tolist()
        said = ids[: ids.index(end)] if end in ids else ids
        names.append(str(base.tokenizer.decode(said)).strip().removesuffix(".").strip())  # pyright: ignore
    return names


def write(clip: Clip, folder: Path) -> Path:
    """Write learned context for CoOp's or CoCoOp's code, in float32, below `folder`. Returns the file.

    Raises UserError if the model has no learned context, has MaPLe's prompts, or has class names that are too long.
    """
    if not isinstance(clip, PromptTuned) or clip.deep is not None:
        raise UserError(
            "only learned context (clipvet tune, coop or cocoop) has CoOp's layout; choose another one for this model"
        )
    base, net = clip.base, tower(clip.base)
    length = net.positional_embedding.shape[0] - len(clip.context)
    tokens, _ = tokens_of(base, [f"{c}." for c in clip.classes or ("",)])
    if tokens.shape[1] > length:
        raise UserError(f"the class names need {tokens.shape[1]} tokens of {length}; this layout cannot hold them")
    whole = torch.zeros(len(tokens), length, dtype=tokens.dtype)
    whole[:, : tokens.shape[1]] = tokens.cpu()
    around = net.token_embedding(whole.to(tokens.device)).detach()
    state = {"ctx": clip.context.detach(), AROUND[0]: around[:, :1], AROUND[1]: around[:, 1:]}
    held = dict(clip.named_parameters())
    state |= {theirs: held[ours].detach() for ours, theirs in NETS.items() if ours in held}
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    with io.replacing(folder / FILE) as tmp:
        torch.save({"state_dict": {k: v.cpu().contiguous() for k, v in state.items()}, "epoch": 0}, tmp)
    return folder / FILE
