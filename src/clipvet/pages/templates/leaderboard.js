// Sorting by a column, and showing some tables alone. Without it the page shows all, in the order of the first number.
"use strict";

function sort(head) {
  const row = head.parentElement, table = row.closest("table"), at = head.cellIndex;
  const turned = head.dataset.turned === "no";  // a second click turns the order round
  for (const other of row.cells) { other.removeAttribute("aria-sort"); delete other.dataset.turned; }
  head.dataset.turned = turned ? "yes" : "no";
  head.setAttribute("aria-sort", (head.dataset.first === "descending") !== turned ? "descending" : "ascending");
  const key = line => line.cells[at].dataset.key, lines = [...table.tBodies[0].rows];
  const order = (a, b) => a - b || String(a).localeCompare(String(b));
  lines.sort((x, y) => {
    const a = key(x), b = key(y);
    if (a === "" || b === "") return (a === "") - (b === "");  // nothing measured: always last
    return (turned ? -1 : 1) * order(a, b);
  });
  table.tBodies[0].append(...lines);
}

function choose() {
  const wanted = [...document.querySelectorAll("select[data-of]")];
  for (const board of document.querySelectorAll("section.board"))
    board.hidden = wanted.some(s => s.value && board.dataset[s.dataset.of] !== s.value);
  for (const family of document.querySelectorAll("section.family"))
    family.hidden = !family.querySelector("section.board:not([hidden])");
}

document.addEventListener("click", event => {
  const button = event.target.closest("th button");
  if (button) sort(button.parentElement);
});
document.addEventListener("change", choose);
for (const line of document.querySelectorAll("[data-scripted]")) line.hidden = false;
choose();  // a page that is loaded again keeps what was chosen
