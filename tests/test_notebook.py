"""The notebook of examples/ runs offline on files that it makes itself, and shows what its text says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples/tour.ipynb"


def printed(book: Any) -> str:
    """All text that the cells put out; errors are raised where they happen."""
    found = []
    for cell in book["cells"]:
        for out in cell.get("outputs", ()):
            found += [out.get("text", ""), out.get("data", {}).get("text/plain", "")]
    return "\n".join("".join(text) for text in found)


def check(book: Any) -> None:
    """What a reader is to see in this notebook, once it was run."""
    said = printed(book)
    called, caught, of = map(int, re.findall(r"(\d+) pairs are called poisoned; (\d+) of the (\d+) poisons", said)[0])
    assert caught >= 0.9 * of
    assert called - caught <= 0.1 * of
    before, after = map(int, re.findall(r"called a star: (\d+)% before, (\d+)% after", said)[0])
    assert before > 80
    assert after < 20
    assert "backdoored: None" in said
    assert "Do not use this model: it looks backdoored towards 'star'." in said
    assert "cleaned on data set by Ubt" in said
    pictures = sum("image/png" in out.get("data", {}) for cell in book["cells"] for out in cell.get("outputs", ()))
    assert pictures >= 1, "the plot"


def test_the_committed_outputs_are_those_of_a_run() -> None:
    """It is read on the web without being run; nothing in it is of one machine."""
    book, text = json.loads(NOTEBOOK.read_text("utf-8")), NOTEBOOK.read_text("utf-8")
    check(book)
    assert not re.search(r"[\s\"'=(]/[a-z]+/|site-packages", text), "an absolute path"
    assert '"stderr"' not in text
    assert len(text) < 300_000


@pytest.mark.filterwarnings("ignore")  # of the notebook's own machinery
def test_it_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(NOTEBOOK, 4)
    for cell in book.cells:
        cell.update({"outputs": []} if cell.cell_type == "code" else {})
    nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    check(book)
    assert (tmp_path / "notebook-files/vetted/report.html").exists()
