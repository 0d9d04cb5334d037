"""Untrusted SVG to pictures: checked, then rendered by resvg in a process of its own, under limits of time and memory.

resvg never touches the network. But it reads pictures from the disk, unfolds nested <use> elements without end, and can
spend minutes on a filter. `check` refuses the first two, and the time limit ends the third. A renderer imports nothing
of ours but this module.
"""

import multiprocessing
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from xml.etree import ElementTree

SECONDS = 20.0  # for one drawing; the slowest real one takes 0.2 at 224 px
MEMORY = 2**30  # bytes of address space of a renderer
MOST_ELEMENTS = 20_000  # with every <use> unfolded; the largest real drawing has some 3,000
SHAPES = "g defs use symbol path rect circle ellipse line polyline polygon title desc"
PAINT = "clipPath mask linearGradient radialGradient stop filter"
MOVES = "animate animateTransform animateMotion set"  # resvg shows the first moment
EFFECTS = "Blend ColorMatrix Composite Flood GaussianBlur Merge MergeNode Offset"
ELEMENTS = {*SHAPES.split(), *PAINT.split(), *MOVES.split(), *(f"fe{e}" for e in EFFECTS.split())}
XLINK = "{http://www.w3.org/1999/xlink}"
Box = tuple[float, float, float, float]
EMPTY = "<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>"


class Refused(ValueError):
    """A drawing that is skipped; its text is the reason under which it is counted."""


def document(body: str, box: Box, size: int, ink: str = "#222") -> str:
    """A whole SVG of size x size pixels, from what a set holds of one. `box`: left, top, width and height."""
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    view = " ".join(f"{v:g}" for v in box)
    return f'<svg {head} viewBox="{view}" width="{size}" height="{size}">{body.replace("currentColor", ink)}</svg>'


def check(svg: str) -> None:
    """Raises Refused for whatever a drawing does not need: entities, references that leave it, too many elements, and
    all elements but ELEMENTS. Text is not one of these: its look depends on the machine's fonts."""
    if re.search(r"<[!?]", svg):
        raise Refused("declarations or entities")
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError) as e:
        raise Refused("damaged") from e
    named = {}
    for element in root.iter():
        kind = element.tag.removeprefix("{http://www.w3.org/2000/svg}")
        if kind not in ELEMENTS and element is not root:
            raise Refused("other elements than shapes and paint")
        for name, value in element.attrib.items():
            leaves = name.removeprefix(XLINK) == "href" and not value.strip().startswith("#")
            if leaves or re.search(r"url\((?!\s*['\"]?#)|@import|://", value, re.IGNORECASE):
                raise Refused("references that leave the drawing")
        if own := element.get("id"):
            named[own] = element
    _unfolded(root, named, {}, 0)


def _unfolded(
    element: ElementTree.Element,
    named: dict[str, ElementTree.Element],
    known: dict[ElementTree.Element, int],
    depth: int,
) -> int:
    """The number of elements with every <use> unfolded. Raises Refused for too many, and for circles."""
    if element in known:
        return known[element]
    if depth > 100:  # a circle of <use>, or a nesting that would exhaust the stack
        raise Refused("elements without end")
    parts = list(element)
    if element.tag.endswith("}use"):
        href = element.get("href") or element.get(f"{XLINK}href") or "#"
        parts += [named[href[1:]]] if href[1:] in named else []
    n = 1 + sum(_unfolded(part, named, known, depth + 1) for part in parts)
    if n > MOST_ELEMENTS:
        raise Refused("elements without end")
    known[element] = n
    return n


def serve(pipe: Connection) -> None:
    """Answers SVG with `+` and a PNG, or with `-` and a reason, until the other end closes."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on this system: the time limit remains
        pass
    import resvg_py  # pyright: ignore[reportMissingImports]

    while True:
        try:
            svg = pipe.recv_bytes().decode()
        except EOFError:
            return
        try:
            check(svg)
            told = b"+" + bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
        except Refused as e:
            told = b"-" + str(e).encode()
        except Exception:  # resvg says what is wrong in words of its own
            told = b"-damaged"
        pipe.send_bytes(told)


class Renderer:
    """A process that renders. It is started when needed, and anew after a drawing that ended it or took too long."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None

    def __call__(self, svg: str) -> bytes:
        """A PNG. Raises Refused."""
        if self.pipe is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            process = self.process = context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._ask(EMPTY, 60)  # what it takes to start counts for no drawing
        return self._ask(svg, self.seconds)

    def _ask(self, svg: str, seconds: float) -> bytes:
        assert self.pipe is not None
        try:
            self.pipe.send_bytes(svg.encode(errors="replace"))
            if not self.pipe.poll(seconds):
                raise Refused("takes too long")
            told = self.pipe.recv_bytes()
        except Refused:
            self.close()
            raise
        except (EOFError, OSError) as e:
            self.close()
            raise Refused("ends the renderer") from e
        if told[:1] == b"-":
            raise Refused(told[1:].decode(errors="replace"))
        return told[1:]

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.join()
        if self.pipe:
            self.pipe.close()
        self.process = self.pipe = None


def render_all(svgs: Iterable[str], jobs: int, seconds: float = SECONDS) -> Iterator[bytes | Refused]:
    """PNGs, or why there is none, in order, by so many renderers side by side."""
    own, started = threading.local(), []

    def one(svg: str) -> bytes | Refused:
        if not hasattr(own, "renderer"):
            own.renderer = Renderer(seconds)
            started.append(own.renderer)
        try:
            return own.renderer(svg)
        except Refused as e:
            return e

    try:
        with ThreadPoolExecutor(jobs) as threads:
            yield from threads.map(one, svgs)
    finally:
        for renderer in started:
            renderer.close()
