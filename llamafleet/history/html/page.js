"use strict";
// Everything is on the page without this script but: sorting, filtering, reading a plot point by
// point, its runs as a table, results as JSON, and the history of all but the first GPUs. What is
// unpacked as HTML was made and escaped with the page; all other texts are set by textContent.
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
async function told(place, show) {
  // What can't be unpacked is said in that place.
  try {
    await show(await load());
  } catch (error) {
    place.textContent = `This browser can't unpack it (${error.message}); expected one of 2023 or later`;
  }
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
  (series.texts[series.busy[i]] ? `, not free or healthy: ${series.texts[series.busy[i]]}` : "");

function point(figure, choose) {
  const said = one("output", figure.parentElement);
  return told(said, (data) => {
    const series = data.series[figure.dataset.series];
    const last = series.rate.length - 1;
    const at = choose(series, Number(figure.dataset.at ?? last + 1), last);
    if (at === undefined || String(at) === figure.dataset.at) return;
    figure.dataset.at = at;
    const cursor = one(".cursor", figure);
    cursor.classList.add("on");
    cursor.setAttribute("cx", place(series.axes[0], series.time[at]));
    cursor.setAttribute("cy", place(series.axes[1], series.rate[at]));
    said.textContent = spoken(series, at);
  });
}
const KEYS = {
  ArrowLeft: (series, at) => Math.max(0, at - 1),
  ArrowRight: (series, at, last) => Math.min(last, at + 1),
  Home: () => 0,
  End: (series, at, last) => last,
};
document.addEventListener("keydown", (event) => {
  const figure = event.target.closest("figure.history");
  if (!figure || !KEYS[event.key]) return;
  event.preventDefault();
  point(figure, KEYS[event.key]);
});
document.addEventListener("pointermove", (event) => {
  const figure = event.target.closest("figure.history");
  if (!figure) return;
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
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", button.dataset.label);
  box.append(table);
  button.replaceWith(box);
  box.focus();
}
function runs(button) {
  return told(button, (data) => {
    const series = data.series[button.dataset.runs];
    const names = ["driver", "toolkit", "build", "busy"];
    const texts = (i) => names.map((name) => series.texts[series[name][i]]);
    const rows = series.rate.map((rate, i) => [
      day(series.time[i]), rate.toFixed(1), series.spread[i].toFixed(1), ...texts(i),
    ]);
    put(button, ["time", "t/s", "±", "driver", "toolkit", "build", "not free or healthy"], rows);
  });
}
function copy(button) {
  return told(button, async (data) => {
    const text = JSON.stringify(data.results[button.dataset.copy], null, 1);
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.value = text;
    area.setAttribute("aria-label", button.dataset.label);
    button.after(area);
    button.disabled = true;
    area.select();
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl-C to copy"; // A browser may forbid it to a local file.
    }
  });
}
function fill(gpu) {
  // The history of a GPU that is opened.
  const box = one("[data-gpu]", gpu);
  if (!box) return undefined;
  const id = box.dataset.gpu;
  delete box.dataset.gpu;
  return told(box, (data) => {
    box.innerHTML = data.gpus[id];
  });
}
// A toggle does not bubble.
document.addEventListener("toggle", (event) => event.target.open && fill(event.target), true);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.runs) runs(button);
  if (button.dataset.copy) copy(button);
  if (button.dataset.open) {
    const open = button.dataset.open === "yes";
    all("details.gpu").forEach((gpu) => (gpu.open = open));
  }
});
async function reveal(hash) {
  const wanted = hash && document.getElementById(hash.slice(1));
  if (!(wanted instanceof HTMLDetailsElement)) return;
  wanted.open = true;
  await fill(wanted);
  wanted.scrollIntoView();
}
// Also of a link that was followed before: the hash does not change then.
document.addEventListener("click", (event) => reveal(event.target.closest("a[href^='#gpu-']")?.hash));
window.addEventListener("hashchange", () => reveal(location.hash));
reveal(location.hash);
