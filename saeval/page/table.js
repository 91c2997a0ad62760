// The table of a board, by DataTables: sorting, paging, switching columns, choosing rows.

const PAGE = 50;

/** Order numbers and texts; rows without one are last in both directions, and controls below all others. */
const last = (compare) => (a, b) =>
  a.control - b.control || (a.key === null || b.key === null ? (a.key === null) - (b.key === null) : compare(a.key, b.key));
DataTable.ext.type.order["saeval-asc"] = last(ordered);
DataTable.ext.type.order["saeval-desc"] = last((a, b) => ordered(b, a));

/** Return a value and its error as parts of which the second may stand below the first. */
function stackable(text) {
  const at = text.indexOf(" ± ");
  return at < 0 ? [text] : [h("span", { class: "figure" }, text.slice(0, at)), " ", h("span", { class: "error" }, text.slice(at + 1))];
}

class BoardTable {
  /** `act` has `open(i)` and `choose()`. */
  constructor(rows, filters, act) {
    this.rows = rows;
    this.filters = filters;
    this.act = act;
    this.minus = "";
    this.chosen = new Set();
    this.fields = this.makeFields();
    const longest = Math.max(...rows.all.map((i) => rows.label(i).length), 4);
    this.element = h("table", { class: "board", style: `--longest: ${longest + 3}ch` });
  }

  /** Return what each column of the table shows: its header, whether it is on at first, and its cells. */
  makeFields() {
    const rows = this.rows;
    const ranked = rows.rows.some((row) => row.rank !== null);
    const properties = ["kind", ...rows.properties.map((one) => one.name)].map((name) => ({
      kind: "property", name, shown: false, group: "properties", sort: (i) => rows.property(name, i),
      text: (i) => String(rows.property(name, i) ?? ""),
    }));
    const values = rows.columns.map((column) => ({
      kind: "value", name: column.name, column, shown: column.shown,
      group: column.paired ? "score − control" : column.name.split(".")[0],
      sort: (i) => rows.number(column, i, this.minus), text: (i) => this.valueText(column, i),
    }));
    return [
      { kind: "choose", name: "compare", shown: true },
      ...(ranked ? [{ kind: "rank", name: "rank", shown: true, sort: (i) => rows.rows[i].rank, text: (i) => rows.rank(i) }] : []),
      { kind: "name", name: "SAE", shown: true, sort: (i) => rows.rows[i].name, text: (i) => rows.label(i) },
      { kind: "hook", name: "hook", shown: rows.hooks.length > 1, sort: (i) => rows.rows[i].hook, text: (i) => rows.rows[i].hook },
      ...values, ...properties,
    ];
  }

  /** Return the text of a value, or of the value minus its control. */
  valueText(column, i) {
    if (!this.minus || !this.rows.hasDifferences(column.name)) return column.text[i] ?? this.rows.missing(column, i).mark;
    const j = this.rows.controlOf(i, this.minus);
    const found = j < 0 ? null : this.rows.difference(column, i, j);
    return found && found.value !== null ? withError(found.value, found.error) : MARKS.undefined;
  }

  cell(field, i) {
    if (field.kind === "choose") return this.chooser(i);
    if (field.kind === "name") {
      const hook = this.rows.hooks.length > 1 ? this.rows.rows[i].hook : "";
      return h("span", {}, h("button", { type: "button", class: "link", on: { click: () => this.act.open(i) } }, breakable(field.text(i))),
        hook ? h("span", { class: "at" }, breakable(hook)) : null);
    }
    if (field.kind !== "value") return document.createTextNode(field.text(i));
    const { column } = field;
    const minus = this.minus && this.rows.hasDifferences(column.name);
    const lacking = minus ? this.rows.noDifference(column, i, this.minus) : "";
    if (minus ? lacking : column.value[i] === null) {
      const { mark, status, reason } = minus ? { mark: MARKS.undefined, status: "undefined", reason: lacking } : this.rows.missing(column, i);
      const shown = h("span", { "aria-hidden": "true" }, mark);
      return h("span", { class: `none ${status === "failed" || status === "damaged" ? "bad" : ""}`, title: reason }, shown,
        h("span", { class: "hidden" }, reason));
    }
    const ends = this.rows.ends(column, i);
    const notes = minus ? [`${column.name} minus that of the control ${this.minus}, paired by document`] :
      [ends ? `95% interval ${interval(ends, column.error[i])}` : "", this.rows.remark(column, i)];
    return h("span", { title: notes.filter(Boolean).join("; ") || null }, ...stackable(field.text(i)));
  }

  chooser(i) {
    const change = (event) => {
      if (event.target.checked) this.chosen.add(i);
      else this.chosen.delete(i);
      this.act.choose();
    };
    const label = `Choose ${this.rows.label(i)} to compare`;
    return h("input", { type: "checkbox", checked: this.chosen.has(i), "aria-label": label, on: { change } });
  }

  header(field) {
    if (field.kind === "choose") return h("span", { class: "hidden" }, "Compare");
    if (field.kind !== "value") return document.createTextNode(field.name);
    const { column } = field;
    const depends = column.depends ? `depends on ${column.depends}${this.rows.tokens ? `; here ${this.rows.tokens}` : ""}` : "";
    const [mark, verdict] = column.certified;
    const title = [column.unit, SENSE[column.better], depends, verdict ? `certificate: ${verdict}` : ""].filter(Boolean).join(", ");
    const [metric, value] = column.name.includes(".") ? column.name.split(/\.(.*)/s) : ["", column.name];
    return h("span", { class: "head", title: title || null },
      metric ? h("span", { class: "metric" }, `${metric}.`) : null, h("wbr"),
      h("span", {}, ...breakable(value), `${ARROWS[column.better] ?? ""}${column.depends ? "\u00a0*" : ""}${mark ? `\u00a0${mark}` : ""}`), h("span", { class: "hidden" }, title ? ` (${title})` : ""));
  }

  /** Build the table below an element; `drawn` is called after each draw. */
  mount(parent, drawn) {
    const head = h("tr", {}, this.fields.map((field) => h("th", { scope: "col" }, this.header(field))));
    this.element.append(h("thead", {}, head));
    const caption = `${this.rows.title}: values of each SAE with one standard error`;
    this.element.prepend(h("caption", { class: "hidden" }, caption));
    parent.append(this.element);
    const columns = this.fields.map((field) => ({
      data: null,
      visible: field.shown,
      type: "saeval",
      searchable: false,
      orderable: field.kind !== "choose",
      className: `${field.kind}${field.kind === "rank" ? " number" : ""}${field.kind === "value" ? " number" : ""}`,
      cellType: field.kind === "name" ? "th" : "td",
      orderSequence: field.column?.better === "higher" ? ["desc", "asc", ""] : ["asc", "desc", ""],
      render: (_, type, row) => (type === "display" ? this.cell(field, row.i) :
        { control: this.rows.rows[row.i].kind === "control", key: field.sort?.(row.i) ?? null }),
      createdCell: field.kind === "name" ? (cell) => cell.setAttribute("scope", "row") : undefined,
    }));
    this.table = new DataTable(this.element, {
      data: this.rows.all.map((i) => ({ i })),
      columns,
      order: [],
      autoWidth: false,
      pageLength: PAGE,
      lengthMenu: [25, 50, 100, 500, { label: "all", value: -1 }],
      layout: { topStart: null, topEnd: null, bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
      language: { info: "_START_ to _END_ of _TOTAL_ rows", infoEmpty: "no rows", infoFiltered: "(of _MAX_)",
        zeroRecords: "No row passes the filters", lengthMenu: "_MENU_ rows a page" },
      createdRow: (line, row) => line.classList.add(this.rows.rows[row.i].kind),
      drawCallback: drawn,
    });
    this.table.search.fixed("filters", (_, row) => this.filters.passes(row.i));
    this.draw();
    addEventListener("resize", () => this.fit());
    addEventListener("beforeprint", () => this.table.page.len(-1).draw());
    addEventListener("afterprint", () => this.table.page.len(PAGE).draw());
  }

  draw() {
    this.table.draw();
    this.fit();
  }

  /** Put errors below their values if the columns do not fit beside each other. */
  fit() {
    const box = this.element.closest(".scrolls");
    if (!box) return;
    this.element.classList.remove("stacked");
    this.element.classList.toggle("stacked", box.scrollWidth > box.clientWidth);
  }

  /** Show values, or values minus those of a control. */
  subtract(name) {
    this.minus = name;
    this.act.subtracted(name);
    this.table.rows().invalidate("data");
    this.draw();
  }

  isShown(at) {
    return this.table.column(at).visible();
  }

  show(at, shown) {
    this.table.column(at).visible(shown, false);
    clearTimeout(this.fitting);
    this.fitting = setTimeout(() => this.fit());
  }

  /** Return the menu that switches columns. */
  get columnMenu() {
    const groups = new Map();
    this.fields.forEach((field, at) => {
      if (field.group) groups.set(field.group, [...(groups.get(field.group) ?? []), [field, at]]);
    });
    const boxes = [];
    const lists = [...groups].map(([name, fields]) => {
      const ticks = fields.map(([field, at]) => {
        const label = tick(field.name + (ARROWS[field.column?.better] ?? ""), this.isShown(at), (on) => this.show(at, on));
        boxes.push([label.querySelector("input"), field, at]);
        return label;
      });
      return h("fieldset", { "data-group": name }, h("legend", {}, name), ...ticks);
    });
    const set = (test) => () => {
      for (const [box, field, at] of boxes) {
        box.checked = test(field);
        this.show(at, box.checked);
      }
    };
    const button = (text, test) => h("button", { type: "button", on: { click: set(test) } }, text);
    return menu("Columns", { "data-menu": "columns" }, h("div", { class: "buttons" },
      button("As in the suite", (field) => field.shown), button("All values", (field) => field.kind === "value"),
      button("None", () => false)), ...lists);
  }

  /** Return the visible cells of all rows that pass the filters, in the order of the table. */
  get copy() {
    const fields = this.fields.filter((field, at) => field.kind !== "choose" && this.isShown(at));
    const indices = this.table.rows({ search: "applied", order: "applied" }).data().toArray().map((row) => row.i);
    const headers = fields.map((field) => ({
      name: field.name, number: field.kind === "value" || field.kind === "rank", error: field.kind === "value",
      better: field.column?.better,
    }));
    const lines = indices.map((i) => fields.map((field) => this.copied(field, i)));
    return new Copy(headers, lines, this.rows.forms);
  }

  copied(field, i) {
    if (field.kind === "name" && this.rows.rows[i].copies === 1) return { name: this.rows.rows[i].name };
    if (field.kind === "name" || field.kind === "hook" || field.kind === "property") return { name: field.text(i) };
    if (field.kind === "rank") return { text: field.text(i) };
    const minus = this.minus && this.rows.hasDifferences(field.name);
    const other = minus ? this.rows.controlOf(i, this.minus) : -1;
    const found = minus ? (other < 0 ? null : this.rows.difference(field.column, i, other)) :
      { value: field.column.value[i], error: field.column.error[i] };
    return { text: field.text(i), value: found?.value ?? null, error: found?.error ?? null };
  }
}

const SHORT = 10;

/** Names in the first column of the tables of each section. */
const named = new Map();

/** Let a reader sort and search the tables of sections that are too long to be read whole. */
function sectionTables() {
  const key = (cell) => parseFloat(String(cell).replace("−", "-"));
  for (const element of document.querySelectorAll("section.section table.plain")) {
    const rows = element.tBodies[0]?.rows.length ?? 0;
    const section = element.closest("section");
    const names = named.get(section) ?? named.set(section, new Set()).get(section);
    for (const row of element.tBodies[0]?.rows ?? []) names.add(row.cells[0].textContent);
    if (rows <= SHORT || element.querySelector("tbody [colspan]")) continue;
    const of = element.closest("details").querySelector("summary").textContent;
    const numeric = [...element.tHead.rows[0].cells].map((cell) => cell.classList.contains("number"));
    const table = new DataTable(element, {
      order: [],
      autoWidth: false,
      pageLength: PAGE,
      columnDefs: numeric.map((is, at) => ({ targets: at, type: is ? "num" : "string",
        render: (data, type) => (is && type === "sort" ? (Number.isNaN(key(data)) ? null : key(data)) : data) })),
      layout: { topStart: "search", topEnd: null, bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
      language: { search: "", searchPlaceholder: `Search ${of}`, info: "_START_ to _END_ of _TOTAL_ rows", infoEmpty: "no rows",
        infoFiltered: "(of _MAX_)", zeroRecords: "No row has this text", lengthMenu: "_MENU_ rows a page" },
    });
    addEventListener("beforeprint", () => table.page.len(-1).draw());
    addEventListener("afterprint", () => table.page.len(PAGE).draw());
  }
}
