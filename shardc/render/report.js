"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);

  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  };

  // Bars: what a segment is, at once instead of after a second; and where else its table is.
  for (const title of all("svg title")) {
    title.parentElement.dataset.tip = title.textContent;
    title.remove();
  }
  let lit = [];
  const light = (table) => {
    for (const segment of lit) segment.classList.remove("hot");
    lit = table === undefined ? [] : all(`.seg[data-t="${table}"]`);
    for (const segment of lit) segment.classList.add("hot");
    document.body.classList.toggle("dim", lit.length > 1);
  };

  // The map: which table and device are under the pointer.
  const rows = all("#table-list tbody tr");
  const named = new Map(rows.map((row) => [row.dataset.t, row]));
  const holds = (row, rank) =>
    row.querySelector(".ranks").textContent.split(", ").some((run) => {
      const [first, last = first] = run.split("-").map(Number);
      return first <= rank && rank <= last;
    });
  const onMap = (grid, event) => {
    const box = grid.getBoundingClientRect();
    const rank = Math.floor(((event.clientX - box.left) / box.width) * grid.dataset.devices);
    const table = grid.dataset.order.split(" ")[Math.floor(((event.clientY - box.top) / box.height) * grid.dataset.tables)];
    const row = named.get(table);
    if (!row || rank < 0 || rank >= grid.dataset.devices) return null;
    const name = row.cells[0].textContent;
    return `${name}\n` + (holds(row, rank) ? `${row.querySelector(".type").textContent}, on device ${rank}` : `not on device ${rank}`);
  };

  document.addEventListener("pointermove", (event) => {
    const within = (selector) => event.target.closest && event.target.closest(selector);
    const grid = within(".grid");
    const segment = within("[data-tip]");
    const text = grid ? onMap(grid, event) : segment && segment.dataset.tip;
    if (text) show(text, event.clientX, event.clientY);
    else tip.hidden = true;
    light(segment && segment.dataset.t);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });

  // Devices: by rank, or the costliest first.
  for (const select of all("select.order")) {
    const list = document.getElementById(select.dataset.list);
    const inPlace = [...list.children];
    const devices = inPlace.filter((child) => child.matches("details"));
    const costliest = [...devices].sort((a, b) => b.dataset.v - a.dataset.v);
    select.addEventListener("change", () => {
      const byRank = select.value === "rank";
      for (const child of inPlace) child.hidden = !byRank && !child.matches("details");
      list.append(...(byRank ? inPlace : costliest));
    });
  }

  // Tables: sorted by a click on a header, filtered by name and sharding type.
  const body = document.querySelector("#table-list tbody");
  const key = (row, column, numeric) => {
    const cell = row.cells[column];
    return numeric ? Number(cell.dataset.v) : cell.textContent;
  };
  const order = new Intl.Collator("en", { numeric: true });
  for (const head of all("#table-list thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const was = head.getAttribute("aria-sort");
      const ascending = was ? was === "descending" : !numeric;
      for (const other of all("#table-list thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const column = head.cellIndex;
      const keyed = rows.map((row) => [key(row, column, numeric), row]);
      keyed.sort(([a], [b]) => (numeric ? a - b : order.compare(a, b)) * (ascending ? 1 : -1));
      body.append(...keyed.map(([, row]) => row));
    });
  }
  const search = document.getElementById("search");
  const type = document.getElementById("type");
  const shown = document.getElementById("shown");
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits =
        (!wanted || row.cells[0].textContent.toLowerCase().includes(wanted)) &&
        (!type.value || row.dataset.type === type.value);
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} tables`;
  };
  search.addEventListener("input", filter);
  type.addEventListener("change", filter);
  for (const tools of all(".needs-script")) tools.hidden = false;
  filter();
})();
