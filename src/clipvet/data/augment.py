"""Random views of pictures and captions. All draws come from the Rng that is passed in; pixels stay in [0, 1]."""

import math
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipvet.errors import UserError
from clipvet.rng import Rng
from clipvet.types import Batch


def noise_and_erase(
    images: Float[Tensor, "b 3 h w"],
    fill: Float[Tensor, "3 1 1"],
    rng: Rng,
    noise: float = 0.2,
    area: tuple[float, float] = (0.005, 0.01),
    p: float = 0.5,
) -> Float[Tensor, "b 3 h w"]:
    """PAR's light view: positive Gaussian noise, then one erased square, each with probability p for each picture.

    images: pixels in [0, 1]. fill: colour of the square, as a rule the model's mean, which normalises to zero. noise:
    standard deviation of n in x + clip(n, 0, 1), so only its positive half is added. area: the square's share of the
    picture, drawn uniformly from this range. Returns new pictures, pixels in [0, 1].
    """
    b, _, h, w = images.shape
    g, device = rng.generator(images.device), images.device
    n = (torch.randn(images.shape, generator=g, device=device) * noise).clamp(0, 1)
    noisy = torch.rand(b, 1, 1, 1, generator=g, device=device) < p
    view = torch.where(noisy, (images + n).clamp(0, 1), images)

    u = torch.rand(4, b, 1, 1, generator=g, device=device)
    side = ((area[0] + (area[1] - area[0]) * u[0]) * h * w).sqrt().round()
    top, left = (u[1] * (h - side + 1)).floor(), (u[2] * (w - side + 1)).floor()
    y, x = torch.arange(h, device=device).view(1, h, 1), torch.arange(w, device=device).view(1, 1, w)
    hole = (y >= top) & (y < top + side) & (x >= left) & (x < left + side) & (u[3] < p)
    return torch.where(hole[:, None], fill, view)


@dataclass(frozen=True)
class Views:
    """SimCLR's random views: flip and crop, colour jitter, grey, blur, in this order. Each picture has its own draws.

    The defaults are those of SafeCLIP's and RoCLIP's public code, for photographs of 224 px; `SMALL` is for 32 px.
    """

    flip: float = 0.5  # probability
    crop: float = 0.08  # smallest share of the picture that a crop keeps; 1: no crop
    jitter: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.1)  # brightness, contrast, saturation, hue (turns)
    p_jitter: float = 0.8
    grey: float = 0.2  # probability
    blur: float = 21 / 224  # kernel's share of the width, sigma 0.1 to 2 of 224 px; 0: none

    def __call__(self, images: Float[Tensor, "b 3 h w"], rng: Rng) -> Float[Tensor, "b 3 h w"]:
        """One view of each picture, of the same size. Pixels are in [0, 1], before and after."""
        b, g, device = len(images), rng.generator(images.device), images.device

        def draw(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=g, device=device)

        # crop and flip in one resampling; aspect ratio 3/4 to 4/3, as in torchvision's RandomResizedCrop
        share, ratio = draw(b, low=self.crop), draw(b, low=math.log(3 / 4), high=math.log(4 / 3)).exp()
        wide, high = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
        dx, dy = draw(b, low=-1) * (1 - wide), draw(b, low=-1) * (1 - high)
        turned = torch.where(draw(b) < self.flip, -wide, wide)
        zero = torch.zeros_like(wide)
        theta = torch.stack([turned, zero, dx, zero, high, dy], 1).view(b, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        view = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)

        light, contrast, saturation, hue = self.jitter
        scale = [1 + draw(b, 1, 1, 1, low=-j, high=j) for j in (light, contrast, saturation)]
        turn = 2 * math.pi * draw(b, low=-hue, high=hue)
        x = view * scale[0]
        x = (x - x.mean((1, 2, 3), keepdim=True)) * scale[1] + x.mean((1, 2, 3), keepdim=True)
        grey = _grey(x)
        x = _turned((x - grey) * scale[2], turn) + grey
        view = torch.where(draw(b, 1, 1, 1) < self.p_jitter, x.clamp(0, 1), view)
        view = torch.where(draw(b, 1, 1, 1) < self.grey, _grey(view).expand_as(view), view)
        size = 2 * round(self.blur * images.shape[-1] / 2) + 1
        if self.blur and size > 1:
            view = _blurred(view, size, draw(b, low=0.1, high=2.0) * images.shape[-1] / 224)
        return view.clamp(0, 1)


CROP = Views(jitter=(0.0, 0.0, 0.0, 0.0), p_jitter=0.0, grey=0.0, blur=0.0)  # crop and flip, as in prompt learning
SMALL = Views(flip=0.0, crop=0.8, jitter=(0.2, 0.2, 0.2, 0.02), grey=0.0, blur=0.0)


def _grey(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _turned(x: Float[Tensor, "b 3 h w"], angle: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Hue: colours turned about the grey axis by `angle` (radians), without going through HSV."""
    c, s = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1) / math.sqrt(3)
    cross = x.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    matrix = c * torch.eye(3, device=x.device) + s * cross + (1 - c) / 3
    return torch.einsum("bij,bjhw->bihw", matrix, x)


def _blurred(x: Float[Tensor, "b 3 h w"], size: int, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur with a sigma (pixels) for each picture. size: of the kernel, in pixels, odd."""
    b, c, h, w = x.shape
    at = torch.arange(size, device=x.device) - size // 2
    kernel = torch.softmax(-(at**2) / (2 * sigma[:, None] ** 2), 1).repeat_interleave(c, 0)
    flat = F.pad(x.reshape(1, b * c, h, w), [size // 2] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=b * c)
    return F.conv2d(flat, kernel[:, None, :, None], groups=b * c).view(b, c, h, w)


def auto_augment(images: Float[Tensor, "b 3 h w"], rng: Rng, group: int = 1) -> Float[Tensor, "b 3 h w"]:
    """torchvision's AutoAugment with the ImageNet policy. Pixels are in [0, 1], before and after.

    group: so many pictures in a row share one draw of the policy.
    """
    from torchvision.transforms import v2

    policy, pixels = v2.AutoAugment(), (images * 255).round().to(torch.uint8)
    with torch.random.fork_rng(devices=[]):  # the policy draws from torch's global generator, so it is seeded here
        torch.default_generator.manual_seed(rng.key)  # the CPU's alone: torch.manual_seed seeds GPUs too
        views = [policy(part) for part in pixels.split(group)]
    return torch.cat(views).float() / 255


Synonyms = Callable[[str], list[str]]  # from a word of a caption to its synonyms; an empty list if none is known


def eda(caption: str, rng: Rng, rate: float = 0.1, synonyms: Synonyms | None = None) -> str:
    """Easy data augmentation (Wei & Zou 2019) of a caption: random swap, deletion or insertion, one of them.

    rate: the fraction of words that change, rounded down, at least one word; deletion takes each word with this
    probability. Before, letters become small, apostrophes go, and digits and punctuation become blanks, as in the
    paper's code; letters of other scripts and accents stay, which it drops. synonyms: a function such as `wordnet()`.
    With it, insertion inserts a synonym, and replacing words by synonyms is a fourth choice; where it knows none of the
    words, insertion repeats a word, as without it. Captions of fewer than two words, captions without Latin letters,
    and all captions at rate 0 come back unchanged.
    """
    words, g = _letters(caption).split(), rng.numpy()
    if len(words) < 2 or not rate or not re.search("[A-Za-z]", caption):
        return caption
    n = max(1, int(rate * len(words)))
    known = {k: found for k, word in enumerate(words) if (found := synonyms(word))} if synonyms else {}
    others = list(known.values())
    match g.integers(4 if known else 3):
        case 0:
            for _ in range(n):
                a, b = g.choice(len(words), 2, replace=False)
                words[a], words[b] = words[b], words[a]
        case 1:
            kept = [word for word in words if g.random() > rate]
            words = kept or [words[g.integers(len(words))]]
        case 2:
            for _ in range(n):
                at = int(g.integers(len(words) + 1))
                other = others[g.integers(len(others))] if known else words
                words.insert(at, other[g.integers(len(other))])
        case _:
            for k in g.permutation(list(known))[:n]:
                words[k] = known[k][g.integers(len(known[k]))]
    return " ".join(words)


def _letters(caption: str) -> str:
    """The caption's letters and marks in lower case, without apostrophes, a blank for anything else."""
    bare = re.sub("[’']", "", caption.lower())
    return "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in bare)


def variants(batch: Batch, rng: Rng, rate: float, synonyms: bool = False, *view: int) -> list[str]:
    """Each caption of a batch, changed by `eda` at this rate, with WordNet's synonyms or without.

    The draws depend on `rng`, the pair's id and the numbers in `view` alone, so they are the same in every epoch.
    """
    look_up = wordnet() if synonyms else None
    return [eda(c, rng.fork(int(i), *view), rate, look_up) for c, i in zip(batch.captions, batch.ids)]


STOP = re.compile(
    "a|an|and|are|as|at|be|but|by|can|do|for|from|had|has|have|he|her|his|i|in|is|it|its|no|not|of|off|on|or|out|over|"
    "she|so|than|that|the|their|them|then|there|they|this|to|up|was|we|were|what|which|who|will|with|you"
)


@cache
def wordnet() -> Synonyms:
    """A function from a word to its synonyms in WordNet, in lower case, sorted.

    Stop words, and words with anything but letters, have none. Nothing is downloaded. Raises UserError if nltk or its
    WordNet corpus is not installed.
    """
    try:
        from nltk.corpus import wordnet as corpus  # pyright: ignore[reportMissingImports]

        corpus.ensure_loaded()
    except (ImportError, LookupError) as e:
        raise UserError(
            "synonyms need WordNet: pip install 'clipvet[wordnet]' and python -m nltk.downloader wordnet"
        ) from e

    @cache
    def look_up(word: str) -> list[str]:
        word = word.strip(string.punctuation).lower()
        if STOP.fullmatch(word) or not word.isalpha():
            return []
        names = {name for synset in corpus.synsets(word) for name in synset.lemma_names()}
        said = {re.sub("[_-]", " ", name).lower() for name in names}
        return sorted(name for name in said - {word} if name.replace(" ", "").isalpha())

    return look_up
