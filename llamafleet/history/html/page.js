"use strict";
// Everything is on the page without this script but: sorting, filtering, reading a plot point by
// point, its runs as a table, and results as JSON. Texts are set by textContent alone.
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

let unpacked = null;
function load() {
  unpacked ??= (async () => {
    const bytes = Uint8Array.from(atob(one("#data").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  })();
  return unpacked;
}

// -- the fleet's table ----------------------------------------------------------------------------
const fleet = one("#fleet table");
function value(row, column) {
  const cell = row.cells[column];
  const number = cell.dataset.value;
  return number === undefined ? cell.textContent.trim() : number === "" ? null : Number(number);
}
function sort(header) {
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  const body = fleet.tBodies[0];
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
    return down ? -order : order;
  });
  all("th[aria-sort]", fleet).forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
}
function filter() {
  const words = one("#filter").value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of fleet.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    const matches = words.every((word) => text.includes(word));
    row.classList.toggle("hidden", !matches);
    shown += matches;
  }
  one("#matches").textContent = `${shown} of ${fleet.tBodies[0].rows.length} lines`;
}
if (fleet) {
  all("thead th", fleet).forEach((header) => {
    if (header.dataset.sort === undefined) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(header));
  });
  one("#filter").addEventListener("input", filter);
}

// -- plots ----------------------------------------------------------------------------------------
const place = ([low, high, start, end], at) => start + ((at - low) / (high - low)) * (end - start);
const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC";
const spoken = (series, i) =>
  `${i + 1} of ${series.rate.length}: ${day(series.time[i])}: ${series.rate[i].toFixed(1)} ± ` +
  `${series.spread[i].toFixed(1)} t/s, driver ${series.texts[series.driver[i]]}, toolkit ` +
  `${series.texts[series.toolkit[i]]}, build ${series.texts[series.build[i]]}` +
  (series.texts[series.busy[i]] ? `, not free: ${series.texts[series.busy[i]]}` : "");

async function point(figure, choose) {
  const series = (await load()).series[figure.dataset.series];
  const last = series.rate.length - 1;
  const at = choose(series, Number(figure.dataset.at ?? last + 1), last);
  if (at === undefined || String(at) === figure.dataset.at) return;
  figure.dataset.at = at;
  const cursor = one(".cursor", figure);
  cursor.classList.add("on");
  cursor.setAttribute("cx", place(series.axes[0], series.time[at]));
  cursor.setAttribute("cy", place(series.axes[1], series.rate[at]));
  one("output", figure.parentElement).textContent = spoken(series, at);
}
const KEYS = {
  ArrowLeft: (series, at) => Math.max(0, at - 1),
  ArrowRight: (series, at, last) => Math.min(last, at + 1),
  Home: () => 0,
  End: (series, at, last) => last,
};
all("figure.history").forEach((figure) => {
  one("output", figure.parentElement).textContent = "Arrow keys or the pointer read its runs.";
  figure.addEventListener("keydown", (event) => {
    if (!KEYS[event.key]) return;
    event.preventDefault();
    point(figure, KEYS[event.key]);
  });
  figure.addEventListener("pointermove", (event) => {
    const box = one("svg", figure).getBoundingClientRect();
    const view = one("svg", figure).viewBox.baseVal;
    const x = ((event.clientX - box.left) / box.width) * view.width;
    point(figure, (series) => {
      let best = 0;
      let least = Infinity;
      series.time.forEach((time, i) => {
        const far = Math.abs(place(series.axes[0], time) - x);
        if (far < least) [best, least] = [i, far];
      });
      return best;
    });
  });
});

// -- on demand ------------------------------------------------------------------------------------
function put(button, names, rows) {
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const name of names) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = name;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const texts of rows) {
    const row = body.insertRow();
    for (const text of texts) row.insertCell().textContent = text;
  }
  const box = document.createElement("div");
  box.className = "scroll";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", button.dataset.label);
  box.append(table);
  button.replaceWith(box);
  box.focus();
}
async function runs(button) {
  const series = (await load()).series[button.dataset.runs];
  const names = ["driver", "toolkit", "build", "busy"];
  const told = (i) => names.map((name) => series.texts[series[name][i]]);
  const rows = series.rate.map((rate, i) => [
    day(series.time[i]), rate.toFixed(1), series.spread[i].toFixed(1), ...told(i),
  ]);
  put(button, ["time", "t/s", "±", "driver", "toolkit", "build", "not free"], rows);
}
async function evidence(button) {
  const result = (await load()).results[button.dataset.evidence];
  const gpu = result.gpus.find((one) => one.uuid === button.dataset.gpu);
  const host = !gpu || result.gpus.length === 1 ? result.checks : [];
  const names = ["name", "status", "found", "expected", "next"];
  const checks = [...(gpu ? gpu.checks : []), ...host];
  put(button, ["check", ...names.slice(1)], checks.map((one) => names.map((name) => one[name])));
}
async function copy(button) {
  const text = JSON.stringify((await load()).results[button.dataset.copy], null, 1);
  const area = document.createElement("textarea");
  area.readOnly = true;
  area.value = text;
  area.setAttribute("aria-label", `Result of ${button.dataset.copy} as JSON`);
  button.after(area);
  area.select();
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Press Ctrl-C to copy"; // A browser may forbid it to a local file.
  }
  button.disabled = true;
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.runs) runs(button);
  if (button.dataset.copy) copy(button);
  if (button.dataset.evidence) evidence(button);
  if (button.dataset.open) {
    const open = button.dataset.open === "yes";
    all("details.gpu").forEach((gpu) => (gpu.open = open));
  }
});
function reveal() {
  const wanted = location.hash && document.getElementById(location.hash.slice(1));
  if (wanted instanceof HTMLDetailsElement) {
    wanted.open = true;
    wanted.scrollIntoView();
  }
}
window.addEventListener("hashchange", reveal);
reveal();
