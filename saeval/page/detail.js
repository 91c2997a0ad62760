// The view of one row: all its values, what they were computed from, curves and histograms, provenance, its command.

function grid(headers, lines, numeric = []) {
  const cell = (value, at, place) => {
    const attributes = { class: numeric[at] ? "number" : null };
    return place === 0 ? h("th", { scope: "row", ...attributes }, typeof value === "string" ? breakable(value) : value) : h("td", attributes, value);
  };
  return h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, headers.map((header, at) => h("th", { scope: "col", class: numeric[at] ? "number" : null }, header)))),
    h("tbody", {}, lines.map((line) => h("tr", {}, line.map((value, at) => cell(value ?? "", at, at))))));
}

const folded = (title, ...content) => h("details", { class: "table" }, h("summary", {}, title), ...content);

/** Return nested plain data as a list of names and texts. */
function listed(data) {
  return h("dl", { class: "facts" }, Object.entries(data).flatMap(([name, value]) => {
    if (value === null || value === "") return [];
    const nested = typeof value === "object" && !Array.isArray(value);
    return [h("dt", {}, name), h("dd", {}, nested ? listed(value) : Array.isArray(value) ? value.map(String).join(", ") : String(value))];
  }));
}

function valuesTable(rows, i, metric) {
  const columns = rows.columns.filter((column) => column.name === metric || column.name.startsWith(`${metric}.`));
  const lines = columns.map((column) => {
    const known = column.value[i] !== null;
    const n = rows.count(column, i, "n");
    const documents = rows.count(column, i, "documents");
    const depends = known && column.depends ? `depends on ${column.depends}` : "";
    const said = known ? [depends, rows.remark(column, i)].filter(Boolean).join("; ") : rows.missing(column, i).reason;
    return [column.name + (ARROWS[column.better] ?? ""), known ? column.text[i] : rows.missing(column, i).mark,
      interval(rows.ends(column, i), column.error[i]), known && n !== null ? n : "", known && documents !== null ? documents : "",
      column.unit, said ? h("span", { class: "remark" }, said) : ""];
  });
  const headers = ["value", "number ± error", "95% interval", "n", "documents", "unit", "remark"];
  const numeric = [false, true, true, true, true, false, false];
  const used = headers.map((_, at) => at < 2 || lines.some((line) => line[at] !== ""));
  const keep = (list) => list.filter((_, at) => used[at]);
  return scrolling(`Values of ${metric}`, grid(keep(headers), lines.map(keep), keep(numeric)));
}

function curveSpec(curve, x, colour) {
  const values = x.map((at, place) => ({ x: at, y: curve.y[place], low: curve.low[place], high: curve.high[place] }));
  const across = { field: "x", type: "quantitative", title: curve.x_unit || "x", scale: { zero: false, nice: false } };
  const up = (field) => ({ field, type: "quantitative", title: [curve.name, curve.unit].filter(Boolean).join(", "), scale: { zero: false } });
  return { width: "container", autosize: FIT, height: 180, data: { values }, layer: [
    ...(anyOf(values, "low") ? [{ mark: { type: "area", opacity: 0.25, color: colour }, transform: [{ filter: "isValid(datum.low)" }], encoding: { x: across, y: up("low"), y2: { field: "high" } } }] : []),
    { mark: { type: "line", color: colour }, encoding: { x: across, y: up("y"), tooltip: [{ field: "x" }, { field: "y" }] } }] };
}

/** A table whose first two columns are `..._from` and `..._to`, or an array's counts, is a histogram. */
function histogramSpec(bins, x, y, colour) {
  return { width: "container", autosize: FIT, height: 180, data: { values: bins }, mark: { type: "rect", color: colour, stroke: themed("--paper"), strokeWidth: 0.5 }, encoding: {
    x: { field: "from", type: "quantitative", title: x, scale: { zero: false, nice: false } }, x2: { field: "to" },
    y: { field: "count", type: "quantitative", title: y }, y2: { datum: 0 }, tooltip: [{ field: "from" }, { field: "to" }, { field: "count" }] } };
}

function histogramOf(table, colour) {
  const [from, to] = table.columns;
  if (table.columns.length !== 3 || !from.endsWith("_from") || !to.endsWith("_to")) return null;
  const bins = table.rows.map((row) => ({ from: row[0], to: row[1], count: row[2] }));
  return histogramSpec(bins, from.slice(0, -5).replaceAll("_", " "), table.columns[2], colour);
}

function binsOf(array) {
  const width = (array.to - array.from) / array.counts.length;
  return array.counts.map((count, at) => ({ from: array.from + at * width, to: array.from + (at + 1) * width, count }));
}

/** Return one result; `drawings` gets the charts, which are drawn once they are on the page. */
function resultPart(rows, i, result, shared, drawings) {
  const colour = rows.colourOf(i);
  const figure = (title, spec, bands) => {
    const place = h("div", { class: "drawn", role: "img", "aria-label": title });
    drawings.push([place, spec]);
    return h("figure", {}, h("figcaption", {}, h("strong", {}, title), bands ? h("span", {}, " Band: 95% intervals.") : null), place);
  };
  const state = result.status === "ok" ? null : h("p", { class: "alert" }, `${result.status}${result.reason ? `: ${result.reason}` : ""}`);
  const figures = [
    ...(result.curves ?? []).map((curve) => figure(`${result.metric}: ${curve.name}`, curveSpec(curve, shared[curve.x], colour), anyOf(curve.low.map((low) => ({ low })), "low"))),
    ...(result.tables ?? []).map((table) => [table, histogramOf(table, colour)]).filter(([, spec]) => spec).map(([table, spec]) => figure(`${result.metric}: ${table.name}`, spec)),
    ...(result.arrays ?? []).filter((array) => array.counts).map((array) =>
      figure(`${result.metric}: ${array.name}`, histogramSpec(binsOf(array), [array.name, array.unit].filter(Boolean).join(", "), "count", colour))),
  ];
  const tables = (result.tables ?? []).map((table) => folded(`Table ${table.name} (${table.rows.length + (table.more ?? 0)} rows)`,
    scrolling(table.name, grid(table.columns, table.rows.map((row) => row.map((cell) => (typeof cell === "number" ? number(cell) : cell)))))));
  const arrays = (result.arrays ?? []).map((array) => h("p", {},
    `Array ${array.name}: ${array.shape.join(" × ")} of ${array.dtype}` + (array.counts ? `; mean ${number(array.mean)}, median ${number(array.median)}, ${number(array.from)} to ${number(array.to)}` : "")));
  const provenance = Object.fromEntries(Object.entries(result.provenance ?? {}).map(([name, place]) => [name, shared[place]]));
  const of = shared[result.of];
  return h("section", { class: "result" }, h("h3", {}, result.metric), state, valuesTable(rows, i, result.metric),
    figures.length ? h("div", { class: "charts pair" }, figures) : null, ...arrays, ...tables,
    ...(result.notes ?? []).map((note) => h("p", { class: "reading" }, note)),
    result.components ? folded("Raw components", listed(result.components)) : null,
    folded("Configuration", listed({ ...of, key: result.key })),
    Object.keys(provenance).length ? folded("Provenance", listed(provenance)) : null,
    result.traceback ? folded("Traceback", h("pre", { tabindex: "0" }, result.traceback)) : null);
}

function commandLine(text) {
  return h("p", { class: "command" }, h("code", {}, text), " ",
    h("button", { type: "button", on: { click: () => putOnClipboard(text, "Command") } }, "Copy command"));
}

/** Return links to the sections whose tables have rows of this name; they are searched for it. */
function elsewhere(name) {
  const sections = [...named].filter(([, names]) => names.has(name)).map(([section]) => section);
  const link = (section) => h("li", {}, h("a", { href: `#${section.id}`, on: { click: () => {
    document.getElementById("dialog").close();
    for (const search of section.querySelectorAll("input[type=search]")) {
      search.value = name;
      search.dispatchEvent(new Event("input"));
    }
  } } }, section.querySelector("h2").textContent));
  return sections.length ? [h("h3", {}, "More of it on this page"), h("ul", {}, sections.map(link))] : [];
}

/** Open the view of row i. */
function openDetail(rows, i) {
  const { rows: boards, shared, folders } = details();
  const results = boards[rows.place][i];
  const drawings = [];
  const declared = rows.properties.map((one) => [one.name, one.values[i]]).filter(([, value]) => value !== null);
  const often = declared.filter(([name]) => OFTEN.includes(name));
  const facts = Object.fromEntries([["kind", rows.property("kind", i)], ["hook", rows.rows[i].hook], ...often]);
  const suites = [...new Set(results.map((result) => shared[result.of].suite).filter(Boolean))];
  const commands = [...new Set(results.map((result) => shared[result.command]).filter(Boolean))];
  const copies = rows.rows[i].copies;
  const rank = rows.rank(i);
  showDialog(rows.label(i),
    rank ? h("p", {}, `Rank ${rank} in ${rows.rank_by}`) : null,
    copies > 1 ? h("p", { class: "reading" }, `Values are means over ${copies} draws; components and curves below are of the first draw.`) : null,
    listed(facts),
    declared.length > often.length ? folded("All declared properties", listed(Object.fromEntries(declared))) : null,
    h("h3", {}, "How to compute it again"),
    suites.length ? h("p", {}, `Suite ${suites.join(", ")}`) : null,
    ...(commands.length ? commands.map(commandLine) : [h("p", {}, "It was computed from Python, so there is no command.")]),
    ...results.map((result) => resultPart(rows, i, result, shared, drawings)),
    ...elsewhere(rows.rows[i].name),
    h("p", { class: "reading" }, `Everything that is stored: saeval show ${folders[0] ?? "FOLDER"} METRIC SAE`));
  for (const [place, spec] of drawings) draw(place, spec);
}
