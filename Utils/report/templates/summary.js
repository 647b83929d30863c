"use strict";
const table = document.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const find = document.getElementById("find"), only = document.getElementById("only"), shown = document.getElementById("shown");
const texts = rows.map((row) => row.textContent.toLowerCase());
const filter = () => {
  const text = find.value.toLowerCase();
  let left = 0;
  rows.forEach((row, i) => {
    row.hidden = !(texts[i].includes(text) && (!only.value || row.dataset.verdict === only.value));
    left += !row.hidden;
  });
  shown.textContent = `${left} of ${rows.length} encoders shown`;
};
const sortBy = (head) => {
  const down = head.getAttribute("aria-sort") === "ascending", at = head.cellIndex, key = (row) => row.cells[at].dataset.key;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const { compare } = new Intl.Collator("en", { numeric: true }), number = (text) => (text ? Number(text) : NaN);
  const order = (a, b) => number(a) - number(b) || compare(a, b);
  body.append(...[...rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b))));
};
for (const head of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortBy(head));
  head.append(button);
}
find.addEventListener("input", filter);
only.addEventListener("change", filter);
document.getElementById("tools").hidden = false;
filter();
