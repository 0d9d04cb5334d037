"""What every page shares: its template filled and written whole."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clipvet import io


def write_html(out: Path, template: str, **values: Any) -> None:
    """Fill templates/`template`.html.jinja and replace `out` at once. A name that the template lacks is an error."""
    loader = PackageLoader("clipvet.pages")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = env.get_template(f"{template}.html.jinja").render(values)
    with io.replacing(out) as tmp:
        tmp.write_text(text, encoding="utf-8")
