// Filters by declared properties and by words. They hide rows and never change a rank. A control passes those by
// properties that it does not declare.

const MOST_TICKS = 12;
const OFTEN = ["kind", "hook", "architecture", "d_sae", "format", "model_name"];

class Filters {
  /** `changed` is called after each change. */
  constructor(rows, changed) {
    this.rows = rows;
    this.changed = changed;
    this.words = [];
    this.withControls = true;
    this.tests = new Map();
    this.telling = rows.telling.filter((one) => one.name !== "kind" || rows.rows.some((row) => row.kind === "group"));
  }

  passes(i) {
    const row = this.rows.rows[i];
    if (row.kind === "control" && !this.withControls) return false;
    const text = this.rows.haystack[i];
    if (!this.words.every((word) => text.includes(word))) return false;
    for (const [name, test] of this.tests) {
      const undeclared = row.kind === "control" && this.rows.property(name, i) === null;
      if (!undeclared && !test(i)) return false;
    }
    return true;
  }

  get passing() {
    return this.rows.all.filter((i) => this.passes(i));
  }

  get elements() {
    const controls = this.rows.rows.filter((row) => row.kind === "control").length;
    const search = h("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search names and properties",
      on: { input: (event) => this.search(event.target.value) },
    });
    this.count = h("span", { class: "count" });
    const first = this.telling.filter((one) => OFTEN.includes(one.name));
    const others = this.telling.filter((one) => !OFTEN.includes(one.name));
    first.sort((a, b) => OFTEN.indexOf(a.name) - OFTEN.indexOf(b.name));
    this.fields = [...first, ...others].map((one) => this.field(one));
    const shown = this.fields.slice(0, first.length);
    const rest = this.fields.slice(first.length);
    const more = rest.length ? h("details", { class: "more", open: !shown.length }, h("summary", {}, `More properties (${rest.length})`), ...rest) : null;
    const clear = h("button", { type: "button", on: { click: () => this.clear() } }, "Clear filters");
    const panel = this.fields.length ? menu("Filter", { "data-menu": "filter" }, clear, ...shown, more) : null;
    const withControls = controls
      ? tick(`Show ${controls} control${controls > 1 ? "s" : ""}`, this.withControls, (checked) => {
          this.withControls = checked;
          this.changed();
        }, { "data-tick": "controls" })
      : null;
    this.searchBox = search;
    return [search, panel, withControls];
  }

  search(text) {
    this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.changed();
  }

  clear() {
    this.tests.clear();
    this.searchBox.value = "";
    this.words = [];
    for (const field of this.fields) for (const box of field.querySelectorAll("input")) {
      if (box.type === "checkbox") box.checked = false;
      else box.value = "";
    }
    this.changed();
  }

  field(property) {
    const set = (test) => {
      if (test) this.tests.set(property.name, test);
      else this.tests.delete(property.name);
      this.changed();
    };
    const controls = property.distinct.length <= MOST_TICKS ? this.ticks(property, set) :
      property.numeric ? this.range(property, set) : this.part(property, set);
    return h("fieldset", { "data-property": property.name }, h("legend", {}, property.name), ...controls);
  }

  ticks(property, set) {
    const chosen = new Set();
    return property.distinct.map((value) => {
      const count = property.values.filter((one, i) => one === value && this.rows.rows[i].kind !== "control").length;
      return tick(`${shownProperty(value)} (${count})`, false, (checked) => {
        if (checked) chosen.add(value);
        else chosen.delete(value);
        set(chosen.size ? (i) => chosen.has(property.values[i]) : null);
      });
    });
  }

  range(property, set) {
    const known = property.distinct.filter((value) => value !== null);
    const limits = [null, null];
    const box = (side, text, placeholder) => {
      const read = (event) => {
        limits[side] = event.target.value === "" ? null : Number(event.target.value);
        const inside = (value) =>
          value !== null && (limits[0] === null || value >= limits[0]) && (limits[1] === null || value <= limits[1]);
        set(limits.some((limit) => limit !== null) ? (i) => inside(property.values[i]) : null);
      };
      return h("label", {}, `${text} `, h("input", { type: "number", step: "any", placeholder, on: { input: read } }));
    };
    return [box(0, "from", String(known[0])), " ", box(1, "to", String(known.at(-1)))];
  }

  part(property, set) {
    const read = (event) => {
      const word = event.target.value.toLowerCase();
      set(word ? (i) => String(property.values[i] ?? "").toLowerCase().includes(word) : null);
    };
    const placeholder = `${property.distinct.length} values`;
    return [h("label", {}, "contains ", h("input", { type: "text", placeholder, on: { input: read } }))];
  }
}
