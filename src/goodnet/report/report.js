// Sorting of the label tables. The page reads whole without it: rows come sorted by score.
"use strict";
(function () {
  function value(row, column, text) {
    const cell = row.cells[column];
    if (text) return cell.textContent;
    const raw = column === 0 ? parseFloat(cell.textContent) : parseFloat(cell.dataset.v);
    return Number.isFinite(raw) ? raw : null;
  }

  // What is missing stays last, whichever way the rest is sorted.
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  }

  function sort(tables, column, heading) {
    const text = heading.dataset.sort === "text";
    const up = heading.hasAttribute("aria-sort")
      ? heading.getAttribute("aria-sort") === "descending"
      : heading.dataset.sort !== "down";
    const rows = tables.flatMap((table) => Array.from(table.tBodies[0].rows));
    const sizes = tables.map((table) => table.tBodies[0].rows.length);
    const keyed = rows.map((row) => [value(row, column, text), row]);
    keyed.sort((a, b) => compare(a[0], b[0], up ? 1 : -1));
    tables.forEach((table, turn) => {
      const mine = keyed.splice(0, sizes[turn]).map((pair) => pair[1]);
      table.tBodies[0].replaceChildren(...mine);
      Array.from(table.tHead.rows[0].cells).forEach((cell, at) => {
        if (at === column) cell.setAttribute("aria-sort", up ? "ascending" : "descending");
        else cell.removeAttribute("aria-sort");
      });
      table.caption.textContent = table.caption.textContent.replace(" that score highest", ", sorted as chosen");
    });
  }

  const groups = new Map();
  document.querySelectorAll("table[data-labels]").forEach((table) => {
    const name = table.dataset.labels;
    groups.set(name, [...(groups.get(name) || []), table]);
  });
  groups.forEach((tables) => tables.forEach((table) => {
    Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = cell.textContent;
      button.addEventListener("click", () => sort(tables, column, cell));
      cell.replaceChildren(button);
    });
  }));
})();
