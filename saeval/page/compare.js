// The view of several chosen rows side by side, with paired differences to one of them.

/** Return the words for a difference: which side is better if its interval excludes 0. */
function verdictOn(column, found) {
  if (!found.ends || !column.better) return "";
  const [low, high] = found.ends;
  if (low <= 0 && high >= 0) return "not sure";
  return (low > 0) === (column.better === "higher") ? "better" : "worse";
}

const signed = (text) => (/^[(\d]/.test(text) && !/^0( |$)/.test(text) ? `+${text}` : text);
const valueText = (rows, column, i) => (column.value[i] === null ? rows.missing(column, i).reason : column.text[i]);

/** Return a cell with the value of row i, and below it the difference to the reference. */
function differenceCell(rows, column, i, reference) {
  const found = rows.difference(column, i, reference);
  const own = h("div", {}, valueText(rows, column, i));
  if (found === null || found.value === null) return h("td", { class: "number" }, own);
  const words = verdictOn(column, found);
  const ends = found.ends ? `[${interval(found.ends, found.error)}]` : "";
  const reason = found.ends ? "" : found.error === 0 ? "all documents agree" : found.reason;
  return h("td", { class: `number ${words.split(" ")[0]}` }, own, h("span", { class: "hidden" }, "difference "),
    h("span", { class: "difference" }, signed(withError(found.value, found.error))),
    ends ? h("span", { class: "ends" }, ` ${ends}`) : null, reason ? h("span", { class: "reason" }, ` ${reason}`) : null, words ? h("span", { class: "words" }, ` ${words}`) : null);
}

function comparisonTable(rows, chosen, reference, all) {
  const others = chosen.filter((i) => i !== reference);
  const columns = rows.columns.filter((column) => !column.paired && (all || column.shown) && chosen.some((i) => column.value[i] !== null));
  const head = h("tr", {}, h("th", { scope: "col" }, "value"), h("th", { scope: "col", class: "number" }, breakable(rows.label(reference)), h("span", { class: "below" }, "reference")),
    others.map((i) => h("th", { scope: "col", class: "number" }, breakable(rows.label(i)), h("span", { class: "below" }, "and its difference to the reference"))));
  const body = columns.map((column) => h("tr", {}, h("th", { scope: "row" }, breakable(column.name + (ARROWS[column.better] ?? "")), column.unit ? h("span", { class: "unit" }, ` ${column.unit}`) : null),
    h("td", { class: "number" }, valueText(rows, column, reference)), others.map((i) => differenceCell(rows, column, i, reference))));
  return h("table", { class: "plain compared" }, h("thead", {}, head), h("tbody", {}, body));
}

function differenceSpec(rows, chosen, reference) {
  const name = rows.hasDifferences(rows.rank_by) ? rows.rank_by : rows.columns.find((column) => rows.hasDifferences(column.name))?.name;
  if (!name) return null;
  const column = rows.byName.get(name);
  const values = chosen.filter((i) => i !== reference).map((i) => ({ row: rows.hooks.length > 1 ? `${rows.short(i)}@${rows.rows[i].hook}` : rows.short(i), colour: rows.colourOf(i), ...rows.difference(column, i, reference) }))
    .map(({ row, colour, value, ends }) => ({ row, colour, value, low: ends?.[0] ?? null, high: ends?.[1] ?? null })).filter((one) => one.value !== null);
  const color = { field: "colour", type: "nominal", scale: null };
  const y = { field: "row", type: "nominal", title: null, sort: null, axis: { labelLimit: innerWidth < NARROW ? 190 : 300 } };
  const title = `${name} minus that of ${rows.label(reference)}${column.unit ? `, ${column.unit}` : ""}${ARROWS[column.better] ?? ""}`;
  return { width: "container", autosize: FIT, height: 26 * values.length, data: { values }, layer: [
    { mark: { type: "rule", color: themed("--faint"), strokeDash: [4, 3] }, encoding: { x: { datum: 0 } } },
    ...(anyOf(values, "low") ? [{ mark: { type: "rule", strokeWidth: 2 }, transform: [{ filter: "isValid(datum.low)" }], encoding: { x: { field: "low", type: "quantitative", title }, x2: { field: "high" }, y, color } }] : []),
    { mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { x: { field: "value", type: "quantitative", title }, y, color } }] };
}

/** Open the comparison of the chosen rows; the reference is the one ranked first unless another is chosen. */
function openComparison(rows, chosen, reference = chosen[0], all = false) {
  const again = (next, every) => openComparison(rows, chosen, next, every);
  const place = h("div", { class: "drawn", role: "img", "aria-label": "Paired differences with their 95% intervals; the table has the same numbers" });
  const spec = differenceSpec(rows, chosen, reference);
  const { folders } = details();
  const quoted = (text) => (/^[\w./@-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const named = (i) => quoted(rows.hooks.length > 1 ? `${rows.rows[i].name}@${rows.rows[i].hook}` : rows.rows[i].name);
  const other = chosen.find((i) => i !== reference);
  const lacking = rows.columns.filter((column) => !column.paired && (all || column.shown) && !rows.hasDifferences(column.name));
  showDialog(`Comparison of ${chosen.length}`,
    h("div", { class: "controls" }, choice("reference", chosen.map((i) => [String(i), rows.label(i)]), String(reference), (value) => again(Number(value), all)),
      tick("all values", all, (checked) => again(reference, checked))),
    h("p", { class: "reading" }, "Differences are paired by document, with 95% intervals that are not corrected for the number of comparisons. " +
      "Better and worse: the interval excludes 0."),
    spec && spec.data.values.length ? place : null,
    scrolling("Comparison", comparisonTable(rows, chosen, reference, all)),
    lacking.length ? h("p", { class: "reading" }, `The page has no paired differences of ${lacking.map((column) => column.name).join(", ")}: there are too many pairs. The command has them.`) : null,
    commandLine(`saeval compare ${folders.map(quoted).join(" ")} ${named(other)} ${named(reference)}`));
  if (place.isConnected) draw(place, spec);
}
