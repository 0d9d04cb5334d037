"""Opens a page in headless Chromium, without a driver: what it looks like, what it logs and what its DOM says."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --disable-dev-shm-usage"
# The page stands in a frame of the wanted width (a window is never narrower than 500 px) and keeps its own CSP.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0"><iframe
style="border:0;width:{width}px;height:{height}px" srcdoc="{page}"></iframe><pre id="facts"></pre>
<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const acted = (() => {{{act}}})();
  facts.textContent = JSON.stringify({{
    acted,
    scheme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
    width: root.clientWidth, scrolled: root.scrollWidth, height: root.scrollHeight,
    pictures: [...page.images].map(i => i.complete ? i.naturalWidth : 0),
    headings: [...page.querySelectorAll("h1, h2")].map(h => h.innerText),
    scripts: page.scripts.length, text: page.body.innerText,
  }});
}}</script>"""


class Seen(NamedTuple):
    facts: dict[str, Any]
    console: list[str]
    screen: Image.Image


def look(page: Path, folder: Path, width: int = 1280, height: int = 900, dark: bool = False, act: str = "") -> Seen:
    """Opens the page `width` CSS pixels wide. Writes a frame, a profile and a screenshot into folder.

    act: JavaScript that does something to the document `page` first; what it returns is the fact `acted`.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, f"the browser tests need a Chromium: install one of {', '.join(NAMES)} (make browser)"
    frame, shot = folder / "frame.html", folder / "screen.png"
    frame.write_text(
        FRAME.format(width=width, height=height, page=html.escape(page.read_text("utf-8")), act=act), "utf-8"
    )
    flags = [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=3000"]
    out = [
        subprocess.run([program, *flags, job, frame.as_uri()], capture_output=True, text=True, timeout=60, check=True)
        for job in ("--dump-dom", f"--screenshot={shot}")
    ]
    found = re.search(r'<pre id="facts">(.+?)</pre>', out[0].stdout, re.S)
    assert found, f"the page did not load: {out[0].stderr[-500:]}"
    console = [line for o in out for line in o.stderr.splitlines() if ":CONSOLE" in line]
    with Image.open(shot) as image:
        return Seen(json.loads(html.unescape(found[1])), console, image.convert("RGB"))
