"""MkDocs calls these functions while it builds the site (`make docs-site`).

They add pages that have no file in docs/ (the API, the changelog, how to contribute, the leaderboard), turn links that
leave docs/ into something that works on the site, and load the script that draws diagrams on the pages that have one.
"""

import logging
import posixpath
import re
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS, PACKAGE = ROOT / "docs", ROOT / "src/clipvet"
SCRIPTS = ROOT / ".venv/docs"  # mermaid.min.js and iframe-worker.js, which `make docs-site` takes from npm packages
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}  # file of the repository -> page
SHOWN_AS = OUTSIDE | {"README.md": "index.md"}
NOT_API = ("commands", "cli")  # the command line: `clipvet --help` says what is there
BOOST = {"methods": 2, "results": 0.5, "decisions": 0.5, "changelog.md": 0.5}  # a name shall lead to its method first
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
RANGE = re.compile(r"\([\d.,]+–[\d.,]+\)")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
ROOM = """::: {}
    options: {{members: false, show_root_heading: false, show_root_toc_entry: false, show_source: false}}"""
log = logging.getLogger("mkdocs.hooks.clipvet")


@event_priority(-100)  # after the plugin `offline`
def on_config(config: MkDocsConfig) -> None:
    known = [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.rglob("*.md"))] + sorted(api_pages())
    config.nav = [_filled(entry, known) for entry in config.nav or []]
    if not (SCRIPTS / "iframe-worker.js").exists():
        log.info("no npm packages: the search works over http alone, and diagrams stay text")
        config.extra["polyfills"] = []


def on_files(files: Files, config: MkDocsConfig) -> None:
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for page, text in api_pages().items():
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "results/leaderboard.html", content=leaderboard()))
    for script in SCRIPTS.glob("*.js"):
        files.append(File.generated(config, f"assets/{script.name}", abs_src_path=str(script)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    room = page.file.src_uri.split("/")[0]
    page.meta.setdefault("search", {"boost": BOOST.get(room, 1)})
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: _link(found, page.file.src_uri), part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A range in a table is never broken in two."""
    return RANGE.sub(r'<span class="range">\g<0></span>', html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Material asks the network for mermaid unless a script has brought it before."""
    if 'class="mermaid"' not in output:
        return output
    if not (SCRIPTS / "mermaid.min.js").exists():
        return output.replace('class="mermaid"', 'class="diagram"')
    up = posixpath.relpath(".", posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace("</head>", f'<script src="{up}/assets/mermaid.min.js"></script></head>', 1)


def leaderboard() -> str:
    """The page that `clipvet leaderboard results` writes."""
    from clipvet.pages.leaderboard import build

    with tempfile.TemporaryDirectory() as folder:
        return build([ROOT / "results"], Path(folder))[0].read_text("utf-8")


def api_pages() -> dict[str, str]:
    """One page for each room of the package, and one for the modules at its root."""
    pages = {}
    for room in [PACKAGE, *(p.parent for p in sorted(PACKAGE.glob("*/__init__.py")))]:
        title = _module(room / "__init__.py")
        found = map(_module, room.glob("*.py") if room == PACKAGE else room.rglob("*.py"))
        names = [n for n in found if "._" not in n and n != title and n.split(".")[1] not in NOT_API]
        if names:
            names.sort(key=lambda n: (n != "clipvet.types", n))
            members = "\n\n".join(f"::: {n}" for n in names)
            pages[f"api/{room.name}.md"] = f"# {title}\n\n{ROOM.format(title)}\n\n{members}\n"
    return pages


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _filled(entry, known: list[str]):
    """An entry of the navigation in which every pattern has become the pages that match it and are not named."""
    if isinstance(entry, dict):
        return {title: _filled(part, known) for title, part in entry.items()}
    if isinstance(entry, str):
        return entry
    pages = [page for part in entry for page in (part.values() if isinstance(part, dict) else [part])]
    named = [page for page in pages if isinstance(page, str) and "*" not in page]
    filled = []
    for part in entry:
        pattern = part if isinstance(part, str) and "*" in part else None
        new = [k for k in known if pattern and fnmatch(k, pattern) and k not in named]
        filled += new if pattern else [_filled(part, known)]
    return filled


def _link(found: re.Match, page: str) -> str:
    """The link as the site needs it; a file that is no page becomes its text alone."""
    text, target, anchor = found[1], found[2], found[3] or ""
    if ":" in target:
        return found[0]
    outside = page in OUTSIDE.values()
    path = ((ROOT if outside else (DOCS / page).parent) / target).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        return found[0]  # of which MkDocs complains
    if path.is_relative_to(PACKAGE) and path.suffix == ".py" and _module(path).split(".")[1] not in NOT_API:
        return f"[{text}][{_module(path)}]" if "._" not in _module(path) else text
    inside = path.relative_to(ROOT).as_posix()
    if inside in SHOWN_AS:
        return f"[{text}]({_relative(SHOWN_AS[inside], page)}{anchor})"
    if path.is_dir() and (path / "index.md").exists() and path.is_relative_to(DOCS):
        path /= "index.md"
    if path.is_relative_to(DOCS) and path.is_file() and path.suffix != ".py":
        return f"[{text}]({_relative(path.relative_to(DOCS).as_posix(), page)}{anchor})"
    return text


def _relative(target: str, page: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")
