// Charts by Vega: those beside a table follow its filters, those of sections are drawn when they come into view.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A5CA8"];
const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"];
const MOST_NAMED = 60;
const MANY = 400;
const SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"; // a name: nothing fetches it
const ERRORS = 1; // of the levels of messages
const FIT = { type: "fit-x", contains: "padding" };

const CONTROL = "control, not trained";
const NARROW = 700;

/** Return where a logarithmic axis has labels: 1, 2 and 5 times the powers of ten, fewer if there are many. */
function logTicks(low, high) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) powers.push(10 ** power);
  const steps = high < 1000 * low ? [1, 2, 5] : [1];
  const inside = powers.flatMap((power) => steps.map((step) => step * power)).filter((one) => one >= low && one <= high);
  return inside.length > 1 ? inside : undefined;
}

/** Return the ends between which numbers stay distinct: those of trained rows, with as much again on each side. */
function edges(records, field) {
  const of = (chosen) => chosen.flatMap((one) => [one[field], one[`${field}_low`], one[`${field}_high`]]).filter((value) => value !== null && value !== undefined);
  const trained = of(records.filter((one) => one.kind !== KINDS.control));
  if (trained.length < 2) return [-Infinity, Infinity];
  const [low, high] = [Math.min(...trained), Math.max(...trained)];
  const room = high - low || Math.abs(high) || 1;
  return [low - room, high + room];
}

/** Return the colour of a custom property for the present theme. */
function themed(name) {
  const probe = h("span", { style: `color: var(${name})` });
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function theme() {
  const [ink, faint, line] = ["--ink", "--faint", "--line"].map(themed);
  const text = { labelColor: ink, titleColor: ink };
  return {
    aria: false, // the element around a chart says what it shows
    mark: { aria: false },
    font: "system-ui, sans-serif",
    background: "transparent",
    view: { stroke: line },
    axis: { gridColor: line, domainColor: faint, tickColor: faint, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", ...text },
    legend: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 220, ...text,
      ...(innerWidth < NARROW ? { orient: "bottom", direction: "vertical" } : {}) },
    header: { labelFontSize: 11, ...text },
    title: { color: ink, subtitleColor: faint, anchor: "start" },
    text: { color: ink },
  };
}

/** Draw a specification; its expressions are interpreted, since the page's policy forbids `eval`. */
async function draw(place, spec, many = false, logLevel = 2) {
  const options = { ast: true, actions: false, renderer: many ? "canvas" : "svg", config: theme(), logLevel };
  const { view } = await vegaEmbed(place, { $schema: SCHEMA, ...spec }, options);
  return view;
}

const anyOf = (records, field) => records.some((record) => record[field] !== null);

const drawnSections = new Map();

/** Draw a section's charts when they come near the window, and all of them before printing. */
function sectionCharts(sections) {
  const waiting = new Map();
  const put = (figure) => {
    const chart = waiting.get(figure);
    waiting.delete(figure);
    seen.unobserve(figure);
    const place = figure.querySelector(".drawn");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${chart.title}. ${chart.description}`);
    drawnSections.set(figure, chart);
    return draw(place, chart.spec, false, ERRORS);
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting && waiting.has(target)) put(target);
  }, { rootMargin: "1200px" });
  sections.forEach((section, at) => {
    const figures = document.querySelectorAll(`#section-${at} figure`);
    section.charts.forEach((chart, index) => {
      waiting.set(figures[index], chart);
      seen.observe(figures[index]);
    });
  });
  addEventListener("beforeprint", () => [...waiting.keys()].forEach(put));
}

function redrawSections() {
  for (const [figure, chart] of drawnSections) draw(figure.querySelector(".drawn"), chart.spec, false, ERRORS);
}

/** The charts of one board: any two values against each other, and any one value of each row. */
class BoardCharts {
  constructor(rows, filters, act) {
    Object.assign(this, { rows, filters, act });
    const values = rows.columns.filter((column) => column.value.some((value) => value !== null));
    const shown = values.filter((column) => column.shown && !column.paired);
    const ranked = values.find((column) => column.name === rows.rank_by) ?? shown[0] ?? values[0];
    const both = (column) => column !== ranked && column.value.some((value, i) => value !== null && ranked.value[i] !== null);
    const l0 = values.find((column) => column.name.endsWith(".l0") && both(column)) ?? shown.find(both) ?? values.find(both) ?? ranked;
    this.x = l0?.name;
    this.y = ranked?.name;
    this.value = ranked?.name;
    this.values = values;
    this.groups = rows.telling.filter((one) => one.distinct.length <= 12).map((one) => one.name);
    this.colour = ["family", "architecture", "format", "kind"].find((name) => this.groups.includes(name)) ?? "";
    this.join = false;
  }

  mount(parent) {
    if (!this.values.length) return;
    const names = this.values.map((column) => [column.name, column.name]);
    const set = (name) => (value) => {
      this[name] = value;
      this.draw();
    };
    const groups = [["", "nothing"], ...this.groups.map((name) => [name, name])];
    this.beyond = h("p", { class: "reading beyond" });
    this.order = h("span", {});
    this.plane = h("div", { class: "drawn", role: "img" });
    this.dots = h("div", { class: "drawn", role: "img" });
    parent.append(h("div", { class: "charts pair" },
      h("figure", { "data-chart": "plane" },
        h("figcaption", {}, h("strong", {}, "Two values"), h("span", {}, " of each shown row. Bars: 95% intervals. Dashes join the rows of a hook that no other shown row there beats in both.")),
        h("div", { class: "controls" }, choice("across", names, this.x, set("x")), choice("up", names, this.y, set("y")),
          choice("colour by", groups, this.colour, set("colour")), tick("join each colour", false, set("join"))),
        scrolling("Chart of two values", this.plane), this.beyond),
      h("figure", { "data-chart": "dots" },
        h("figcaption", {}, h("strong", {}, "One value"), this.order),
        h("div", { class: "controls" }, choice("value", names, this.value, set("value"))),
        scrolling("Chart of one value", this.dots))));
    this.draw();
  }

  /** Draw once after a burst of changes. */
  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.draw(), 120);
  }

  records(names) {
    return this.filters.passing.map((i) => {
      const record = { i, row: this.rows.label(i), hook: this.rows.rows[i].hook, kind: KINDS[this.rows.rows[i].kind] };
      names.forEach((name, at) => {
        const column = this.rows.byName.get(name);
        const ends = this.rows.ends(column, i);
        record[`v${at}`] = column.value[i];
        record[`v${at}_low`] = ends?.[0] ?? null;
        record[`v${at}_high`] = ends?.[1] ?? null;
        record[`text${at}`] = column.text[i] ?? this.rows.missing(column, i).reason;
      });
      record.measured = names.every((name) => this.rows.missing(this.rows.byName.get(name), i).status in MARKS);
      record.colour = record.kind === KINDS.control ? CONTROL : this.colour ? shownProperty(this.rows.property(this.colour, i)) : "SAE";
      return record;
    });
  }

  /** Return the channels that show the chosen property: the same colour and shape in all charts, whatever is filtered. */
  marks(records, legend) {
    const marks = new Map([...(this.colour ? this.rows.marksOf(this.colour) : [["SAE", [COLOURS[0], SHAPES[0]]]]), [CONTROL, [themed("--faint"), "diamond"]]]);
    const drawn = (record) => record.v0 !== null && record.v1 !== null; // v1 is undefined in a chart of one value
    const domain = [...marks.keys()].filter((name) => records.some((record) => record.colour === name && drawn(record)));
    const shown = legend && domain.length > 1 ? { orient: "bottom", columns: innerWidth < NARROW ? 1 : 3, symbolOpacity: 1 } : null;
    const channel = (of) => ({ field: "colour", type: "nominal", title: this.colour || null, scale: { domain, range: domain.map((name) => marks.get(name)[of]) }, legend: shown });
    return { color: channel(0), shape: channel(1) };
  }

  axis(name, field, records) {
    const column = this.rows.byName.get(name);
    const numbers = records.map((record) => record[field]).filter((value) => value !== null);
    const log = numbers.length > 1 && Math.min(...numbers) > 0 && Math.max(...numbers) > (column.name.endsWith(".l0") ? 3 : 30) * Math.min(...numbers);
    const title = [name, column.unit, column.depends && this.rows.tokens ? `at ${this.rows.tokens}` : ""].filter(Boolean).join(", ") + (ARROWS[column.better] ?? "");
    const axis = log ? { values: logTicks(Math.min(...numbers), Math.max(...numbers)), format: "~g" } : {};
    return { field, type: "quantitative", title, axis, scale: log ? { type: "log", nice: false, padding: 10 } : { zero: false, padding: 8 } };
  }

  /** Return the rows that no other row beats in both values; none if a value has no better direction. Fewer features are better. */
  front(records) {
    const [x, y] = [this.x, this.y].map((name) => this.rows.byName.get(name));
    const sense = (column) => ({ lower: 1, higher: -1 })[column.better] ?? (column.name.endsWith(".l0") ? 1 : 0);
    const [sx, sy] = [sense(x), sense(y)];
    if (!sx || !sy || x === y) return [];
    const known = records.filter((one) => one.v0 !== null && one.v1 !== null && one.kind !== KINDS.control);
    known.sort((a, b) => sx * (a.v0 - b.v0) || sy * (a.v1 - b.v1));
    const best = new Map(); // hooks differ in how much there is to lose, so each has a front of its own
    return known.filter((one) => sy * one.v1 < (best.get(one.hook) ?? Infinity) && best.set(one.hook, sy * one.v1));
  }

  planeSpec(records) {
    const [x, y] = [this.axis(this.x, "v0", records), this.axis(this.y, "v1", records)];
    const { color: colour, shape } = this.marks(records, true);
    const front = this.front(records);
    const step = this.rows.byName.get(this.x).better === "higher" ? "step-before" : "step-after";
    const only = (test) => [{ filter: test }];
    const tooltip = [{ field: "row", title: "SAE" }, { field: "hook" }, { field: "text0", title: this.x }, { field: "text1", title: this.y }];
    const bar = (axis, other, low, high) => ({ mark: { type: "rule", opacity: 0.6 }, transform: only(`isValid(datum.${low})`),
      encoding: { [axis]: { ...(axis === "x" ? x : y), field: low }, [`${axis}2`]: { field: high }, [other]: other === "x" ? x : y, color: colour } });
    const joined = { mark: { type: "line", opacity: 0.5 }, transform: only(`datum.colour !== '${CONTROL}'`), encoding: { x, y, color: colour, order: { field: "v0" } } };
    return {
      width: "container", autosize: FIT, height: 320, data: { values: records }, transform: only("isValid(datum.v0) && isValid(datum.v1)"),
      layer: [
        ...(front.length > 1 ? [{ data: { values: front }, mark: { type: "line", color: themed("--faint"), strokeDash: [5, 3], interpolate: step }, encoding: { x, y, detail: { field: "hook" }, order: { field: "v0" } } }] : []),
        ...(this.join && this.colour ? [joined] : []),
        ...(anyOf(records, "v0_low") ? [bar("x", "y", "v0_low", "v0_high")] : []),
        ...(anyOf(records, "v1_low") ? [bar("y", "x", "v1_low", "v1_high")] : []),
        { mark: { type: "point", filled: true, size: 55, opacity: 1, cursor: "pointer" }, encoding: { x, y, color: colour, shape, tooltip } },
      ],
    };
  }

  dotsSpec(given) {
    const better = this.rows.byName.get(this.value).better;
    const [low, high] = edges(given, "v0");
    const clamped = (value) => (value === null ? null : Math.min(Math.max(value, low), high));
    const records = given.map((record) => ({ ...record, shown: clamped(record.v0), shown_low: clamped(record.v0_low), shown_high: clamped(record.v0_high),
      edge: record.v0 === null || (record.v0 >= low && record.v0 <= high) ? null : `${record.v0 < low ? "←" : "→"} ${number(record.v0, 3)}` }));
    const x = this.axis(this.value, "shown", records);
    const { color: colour, shape } = this.marks(records, false);
    this.order.textContent = ` of each shown row, ${better ? "the best" : "the smallest"} at the top. Bars: 95% intervals.`;
    const known = records.filter((record) => record.v0 !== null);
    known.sort((a, b) => (better === "higher" ? b.v0 - a.v0 : a.v0 - b.v0));
    const rest = records.filter((record) => record.v0 === null && record.measured);
    const few = known.length + rest.length <= MOST_NAMED;
    const order = [...known, ...rest].map((record, at) => ({ ...record, at, label: `${this.rows.short(record.i)}${this.rows.hooks.length > 1 && record.hook ? `@${record.hook}` : ""}` }));
    const labels = order.map((record) => record.label);
    const twice = labels.some((label, at) => labels.indexOf(label) !== at);
    if (twice && few) order.forEach((record, at) => { record.label = `${record.label} (${at + 1})`; });
    const y = few ? { field: "label", type: "nominal", title: null, sort: order.map((record) => record.label), axis: { labelLimit: innerWidth < NARROW ? 190 : 300, grid: false } } :
      { field: "at", type: "quantitative", title: `${order.length} rows, ${better ? "the best" : "the smallest"} first`, scale: { reverse: true, nice: false }, axis: { grid: false } };
    const tooltip = [{ field: "row", title: "SAE" }, { field: "hook" }, { field: "text0", title: this.value }];
    return {
      width: "container", autosize: FIT, height: few ? 17 * order.length : 420, data: { values: order },
      layer: [
        ...(anyOf(order, "v0_low") ? [{ mark: { type: "rule" }, transform: [{ filter: "isValid(datum.shown_low)" }], encoding: { x: { ...x, field: "shown_low" }, x2: { field: "shown_high" }, y, color: colour } }] : []),
        { mark: { type: "point", filled: true, size: few ? 50 : 12, opacity: 1, cursor: "pointer" }, transform: [{ filter: "isValid(datum.v0)" }], encoding: { x, y, color: colour, shape, tooltip } },
        ...(few && anyOf(order, "edge") ? [{ mark: { type: "text", align: "right", dx: -7, fontSize: 10, color: themed("--faint") }, transform: [{ filter: "isValid(datum.edge)" }], encoding: { x, y, text: { field: "edge" } } }] : []),
        ...(few ? [{ mark: { type: "text", align: "left", fontStyle: "italic", fontSize: 10, color: themed("--faint"), limit: 260 }, transform: [{ filter: "!isValid(datum.v0)" }], encoding: { x: { value: 4 }, y, text: { field: "text0" } } }] : []),
      ],
    };
  }

  /** Draw a chart, or say that there is nothing to draw. */
  async drawAny(place, any, spec, many) {
    if (any) return draw(place, spec(), many);
    place.replaceChildren(h("p", { class: "reading" }, "No shown row has a number here."));
    return null;
  }

  async draw() {
    if (!this.plane) return;
    const everything = this.records([this.x, this.y]);
    const [across, up] = [edges(everything, "v0"), edges(everything, "v1")];
    const near = (record) => record.v0 === null || record.v1 === null || (record.v0 >= across[0] && record.v0 <= across[1] && record.v1 >= up[0] && record.v1 <= up[1]);
    const both = everything.filter(near);
    const beyond = everything.filter((record) => !near(record)).map((record) => `${record.row} (${number(record.v0, 3)}, ${number(record.v1, 3)})`);
    this.beyond.textContent = beyond.length ? `Beyond the edges: ${beyond.slice(0, 6).join(", ")}${beyond.length > 6 ? ` and ${beyond.length - 6} more` : ""}.` : "";
    const many = both.length > MANY;
    const one = this.records([this.value]);
    this.plane.setAttribute("aria-label", `${this.y} by ${this.x} of ${both.length} rows; the table has the same numbers`);
    this.dots.setAttribute("aria-label", `${this.value} of ${one.length} rows; the table has the same numbers`);
    const views = await Promise.all([
      this.drawAny(this.plane, both.some((r) => r.v0 !== null && r.v1 !== null), () => this.planeSpec(both), many),
      this.drawAny(this.dots, anyOf(one, "v0"), () => this.dotsSpec(one), many),
    ]);
    for (const view of views) view?.addEventListener("click", (_, item) => {
      if (item?.datum && Number.isInteger(item.datum.i)) this.act.open(item.datum.i);
    });
    this.plane.closest(".charts").dataset.rows = String(everything.length);
  }
}
