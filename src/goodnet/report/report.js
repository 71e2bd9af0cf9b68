// Sorting of the label tables, and pictures at a larger size. The page reads whole without it: rows come sorted by score.
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

  function made(tag, parent, text) {
    const element = document.createElement(tag);
    if (tag === "button") element.type = "button";
    if (text) element.textContent = text;
    parent.append(element);
    return element;
  }

  // One dialog for all pictures. The arrow keys step through those of one trigger: clean and triggered in one place.
  const dialog = document.createElement("dialog");
  const bar = made("div", dialog);
  bar.className = "bar";
  const title = made("p", bar);
  title.id = "zoom-title";
  dialog.setAttribute("aria-labelledby", title.id);
  const steps = [[made("button", bar, "← Previous"), -1], [made("button", bar, "Next →"), 1]];
  const close = made("button", bar, "Close");
  const figure = made("figure", dialog);
  const large = made("img", figure);
  const caption = made("figcaption", figure);
  caption.setAttribute("aria-live", "polite");
  let open = [];
  let at = 0;

  function show(turn) {
    at = (turn + open.length) % open.length;
    const small = open[at].querySelector("img");
    const wide = small.naturalWidth, high = small.naturalHeight;
    // whole multiples, so that every pixel of the image is the same square on the screen
    const room = Math.min((innerWidth * 0.92 - 60) / wide, (innerHeight * 0.92 - 130) / high);
    const scale = Math.max(1, Math.floor(room));
    large.src = small.src;
    large.width = wide * scale;
    large.height = high * scale;
    large.alt = small.alt;
    const said = open[at].closest("figure").querySelector("figcaption").textContent;
    caption.textContent = small.alt + " – " + said;
    title.textContent = open[at].closest("[data-zoom]").dataset.zoom + ", picture " + (at + 1) + " of " + open.length;
  }

  document.querySelectorAll("[data-zoom]").forEach((group) => {
    const buttons = [];
    group.querySelectorAll("img").forEach((img, turn) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "zoom";
      button.setAttribute("aria-label", "Enlarge: " + img.alt);
      button.setAttribute("aria-haspopup", "dialog");
      img.replaceWith(button);
      button.append(img);
      buttons.push(button);
      button.addEventListener("click", () => {
        open = buttons;
        show(turn);
        dialog.showModal();
      });
    });
  });
  steps.forEach(([button, step]) => button.addEventListener("click", () => show(at + step)));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) show(at + step);
  });
  dialog.addEventListener("close", () => open[at].focus());
  document.body.append(dialog);
})();
