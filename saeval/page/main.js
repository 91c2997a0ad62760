// One view for each board, the theme, and printing.

function boardView(board, place) {
  const rows = new Rows(board, place);
  const root = document.querySelector(`#board-${place} .view`);
  const differences = h("span", {});
  const subtracted = (name) => {
    differences.textContent = name ? `Now values are minus those of the control ${name}, paired by document; charts keep the measured values. ` : "";
  };
  const act = { open: (i) => openDetail(rows, i), choose: () => chosenChanged(), subtracted };
  let table = null;
  let charts = null;
  const filters = new Filters(rows, () => {
    table.draw();
    charts.later();
  });
  table = new BoardTable(rows, filters, act);
  charts = new BoardCharts(rows, filters, act);
  const compare = h("button", { type: "button", disabled: true, "data-act": "compare",
    on: { click: () => openComparison(rows, [...table.chosen].sort((a, b) => a - b)) } }, "Compare");
  const forget = h("button", { type: "button", hidden: true, on: { click: () => {
    table.chosen.clear();
    table.table.rows().invalidate("data").draw(false);
    chosenChanged();
  } } }, "Clear choice");
  const chosenChanged = () => {
    compare.disabled = table.chosen.size < 2;
    forget.hidden = table.chosen.size === 0;
    compare.textContent = table.chosen.size ? `Compare (${table.chosen.size})` : "Compare";
  };
  const copy = (text, form) => h("button", { type: "button", "data-copy": form, on: { click: () => putOnClipboard(table.copy[form], `Table as ${text}`) } }, text);
  const copies = menu("Copy", { "data-menu": "copy" }, h("div", { class: "buttons" }, copy("Markdown", "markdown"), copy("LaTeX", "latex"), copy("CSV", "csv")));
  const toolbar = h("div", { class: "toolbar", role: "group", "aria-label": "Table controls" });
  const box = h("div", { class: "scrolls wide", tabindex: "0", role: "region", "aria-label": `Table of ${board.title}` });
  root.append(toolbar, box);
  table.mount(box, () => {});
  const controls = rows.controls.filter((name) => rows.all.some((i) => rows.controlOf(i, name) >= 0));
  const minus = controls.length && rows.pairs.length + rows.deviations.length
    ? choice("Values", [["", "as measured"], ...controls.map((name) => [name, `− ${name}`])], "", (name) => table.subtract(name)) : null;
  toolbar.after(h("p", { class: "reading key" }, differences, ...reading(rows)));
  toolbar.append(...[...filters.elements, table.columnMenu, minus, compare, forget, copies].filter(Boolean));
  // Below the scrolling table, so that the pages' buttons stay in view.
  const foot = h("div", { class: "foot" });
  box.after(foot);
  for (const part of box.querySelectorAll(".dt-layout-row:not(.dt-layout-table)")) foot.append(part);
  charts.mount(root);
  return charts;
}

/** Return what the signs of a table mean. */
function reading(rows) {
  const groups = rows.rows.some((row) => row.kind === "group");
  return [
    h("span", {}, `± is one standard error over documents${groups ? " (of groups of SAEs, over seeds)" : ""}. `),
    h("span", {}, "↓ lower is better, ↑ higher is better. "),
    ...rows.dependences.map((sentence) => h("span", {}, `* ${sentence}. `)),
  ];
}

const boards = block("boards").map(boardView);
const sections = block("sections");
sectionCharts(sections);
sectionTables();

const themeButton = document.getElementById("theme");
const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const nameTheme = () => { themeButton.textContent = dark() ? "Light" : "Dark"; };
const redraw = () => {
  boards.forEach((charts) => charts.draw());
  redrawSections();
};
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  nameTheme();
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); redraw(); });
nameTheme();
document.getElementById("print").addEventListener("click", () => print());
document.documentElement.dataset.ready = "yes";
