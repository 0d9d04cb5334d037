"""clipvet's features against stock transformers': oblong pictures, odd captions, whole folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf as made
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clipvet.data.decoding import FilePictures
from clipvet.models import checkpoints, tokenizers
from clipvet.rng import Rng

transformers: Any = pytest.importorskip("transformers")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PROCESSOR = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16}
NASTY = [
    "a “curly” dog’s quote", "salt &amp; pepper", "a ﬁne ligature", "ｆｕｌｌ width", "a dog <|endoftext|> a cat",
    "<|ENDOFTEXT|>! <|startoftext|>", "<end_of_text> ΣΑΣ İ", "cafe\u0301 \u200bx\x1cy\x85z\u3000", "", " \t\n",
    "one " * 30, "ÃƒÂ©tÃƒÂ©", "it's 'LL ½ ² 一二", "a_b-c...d!?",
]  # fmt: skip
PIECES = [
    "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "!", "'s", "'LL", "&amp;", "ﬁ", "“", "  ", "\n", "Σ", "a", "1",
    "e\u0301", "<|", "|>", "İ", "<end_of_text>", "\u2019",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=4)
CAPTIONS = st.lists(st.one_of(st.sampled_from(PIECES), TEXT), max_size=9).map("".join)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in transformers' layout, with CLIP's own tokenizer."""
    folder = tmp_path_factory.mktemp("stock") / "m"
    told = made.config("clip", "quick_gelu", image_size=16)
    for part in ("vision_config", "text_config"):
        told[part] |= SIZES
    made.keep(folder, told)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    for name, held in tokenizers.files_of(tokenizers.own(16)).items():
        (folder / name).write_bytes(held)
    return folder


@pytest.fixture(scope="module")
def here(plain: Path) -> Any:
    return checkpoints.load(str(plain))


@pytest.fixture(scope="module")
def there(plain: Path) -> Any:
    return Stock(plain)


class Stock:
    """What stock transformers loads from a folder the ordinary way."""

    def __init__(self, folder: Path):
        self.net = transformers.AutoModel.from_pretrained(folder).eval()
        self.see = transformers.AutoImageProcessor.from_pretrained(folder)
        self.read = transformers.AutoTokenizer.from_pretrained(folder)

    def tokens(self, captions: list[str]) -> Any:
        return self.read(captions, return_tensors="pt", padding="max_length", max_length=16, truncation=True)

    @torch.no_grad()
    def features(self, picture: Image.Image, captions: list[str]) -> tuple[Tensor, Tensor]:
        pixels = self.see(picture, return_tensors="pt")["pixel_values"].to(self.net.dtype)
        found = (self.net.get_image_features(pixels), self.net.get_text_features(**self.tokens(captions)))
        image, text = (f if torch.is_tensor(f) else f.pooler_output for f in found)
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


@torch.no_grad()
def ours(clip: Any, path: Path, captions: list[str]) -> tuple[Tensor, Tensor]:
    images, bad = FilePictures([path.name], path.parent).fetch([0], clip.geometry)
    assert not bad
    return clip.encode_image(images), clip.encode_text(captions)


def apart(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def noise(h: int, w: int, mode: str = "RGB") -> Image.Image:
    pixels = torch.randint(256, (h, w, 4), generator=Rng(h * w).generator(), dtype=torch.uint8).numpy()
    return Image.fromarray(pixels).convert(mode)


# how pictures are cut and captions are read


def test_oblong_pictures(here: Any, there: Stock, tmp_path: Path) -> None:
    """A quarter of them would be cut one pixel off in open_clip's way."""
    far, off = [], 0
    g = Rng(0).generator()
    for _ in range(40):
        h, w = torch.randint(10, 90, (2,), generator=g).tolist()
        picture = noise(h, w)
        picture.save(tmp_path / "a.png")
        found = ours(here, tmp_path / "a.png", [""])
        far.append(apart(found, there.features(picture, [""])))
        open_clip = FilePictures(["a.png"], tmp_path).fetch([0], replace(here.geometry, library="open_clip"))[0]
        off += apart((here.encode_image(open_clip).detach(),), found[:1]) > 1e-4
    assert max(far) < 1e-4
    assert off >= 10, "these pictures tell the two ways apart"


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_colours_of_pictures(here: Any, there: Stock, tmp_path: Path, mode: str) -> None:
    noise(30, 21, mode).save(tmp_path / "a.png")
    assert apart(ours(here, tmp_path / "a.png", [""]), there.features(Image.open(tmp_path / "a.png"), [""])) < 1e-4


@pytest.mark.parametrize("caption", NASTY)
def test_captions_that_need_cleaning(here: Any, there: Stock, tmp_path: Path, caption: str) -> None:
    noise(16, 16).save(tmp_path / "a.png")
    found = ours(here, tmp_path / "a.png", [caption])
    assert apart(found, there.features(noise(16, 16), [caption])) < 1e-4


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(CAPTIONS)
@example("&amp;<|ENDOFTEXT|><|ENDOFTEXT|>")
def test_tokens_are_stock_transformers(here: Any, there: Stock, caption: str) -> None:
    got = here.tokenize([caption])[0]
    end = int(got.nonzero().max()) + 1
    assert torch.equal(got[:end], there.tokens([caption])["input_ids"][0, :end])
