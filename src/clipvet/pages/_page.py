"""What every page shares: its template filled and written whole, plot areas, pictures inside the file.

A page is a single file without outside resources. Templates extend templates/page.html.jinja. Its only script, if it
has one, is a file of templates/ that the page's own rules name by its hash.
"""

import base64
import hashlib
import io as memory
import re
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from clipvet import io

SMALL = 96  # pixels: smaller pictures are stored without loss and shown with hard pixels


def write_html(out: Path, template: str, *, script: str = "", **values: Any) -> None:
    """Fill templates/`template`.html.jinja and replace `out` at once. A name that the template lacks is an error.

    script: a file of templates/, which alone may run on the page.
    """
    loader = PackageLoader("clipvet.pages")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    code = (Path(__file__).parent / "templates" / script).read_text("utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    env.globals |= {"script": Markup(code), "script_hash": digest}
    env.filters["options"] = options
    text = env.get_template(f"{template}.html.jinja").render(values)
    with io.replacing(out) as tmp:
        tmp.write_text(text, encoding="utf-8")


def options(text: str) -> Markup:
    """Text in which options such as --task stand out, and stay on one line."""
    return Markup(re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<code class="option">\g<0></code>', str(escape(text))))


class Axes(NamedTuple):
    """A plot area in SVG units and where data lands in it."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int
    width: int = 390
    margin: tuple[int, int, int, int] = (10, 12, 40, 46)  # top, right, bottom, left

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies."""
        top, right, bottom, left = self.margin
        dx, dy = (x - self.x[0]) / (self.x[1] - self.x[0]), (y - self.y[0]) / (self.y[1] - self.y[0])
        w, h = self.width - left - right, self.height - top - bottom
        return round(left + dx * w, 1), round(top + (1 - dy) * h, 1)

    def ticks(self, low: float, high: float) -> list[float]:
        """About five round numbers between two ends."""
        values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [round(float(v), 9) for v in values if low <= v <= high]


def data_uri(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """The picture as text that an `img` shows. options: of Pillow's `save`."""
    image.save(buffer := memory.BytesIO(), kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(image: Float[Tensor, "3 h w"]) -> str:
    """Pixels in [0, 1] as a data URI."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    small = max(pixels.shape) < SMALL
    return data_uri(Image.fromarray(pixels)) if small else data_uri(Image.fromarray(pixels), "JPEG", quality=85)
