// The rows of a board with their values, reasons and properties, as the table, the charts and the views read them.

const KINDS = { sae: "SAE", control: "control", group: "group of SAEs", model: "model", hook: "hook" };
const MARKS = { undefined: "–", failed: "failed", missing: "missing", damaged: "damaged" };

class Rows {
  constructor(board, place) {
    Object.assign(this, board);
    this.place = place;
    this.byName = new Map(this.columns.map((column) => [column.name, column]));
    this.pairsOf = new Map(this.pairs.map((pairs) => [pairs.name, pairs]));
    this.deviationsOf = new Map(this.deviations.map((one) => [one.name, one]));
    this.all = this.rows.map((_, i) => i);
    this.hooks = [...new Set(this.rows.map((row) => row.hook).filter(Boolean))];
    this.haystack = this.rows.map((row, i) =>
      [row.name, row.hook, ...this.properties.map((one) => one.values[i] ?? "")].join("\n").toLowerCase(),
    );
  }

  label(i) {
    const row = this.rows[i];
    return row.copies > 1 ? `${row.name} ×${row.copies}` : row.name;
  }

  /** Return the name without what the names at one hook have in common. */
  short(i) {
    const row = this.rows[i];
    return row.copies > 1 ? `${row.short} ×${row.copies}` : row.short;
  }

  rank(i) {
    const { rank, rank_high: high } = this.rows[i];
    if (rank === null) return "";
    return high === null || high === rank ? `${rank}` : `${rank}–${high}`;
  }

  /** Return the words for an entry without a value: its mark in the table, and the whole reason. */
  missing(column, i) {
    const [status, reason] = column.said[i] ?? ["not measured", ""];
    return { mark: MARKS[status] ?? "", status, reason: reason ? `${status}: ${reason}` : status };
  }

  /** Return why a value has a remark, such as a missing error; empty if it has none. */
  remark(column, i) {
    return column.value[i] === null ? "" : (column.said[i]?.[1] ?? "");
  }

  ends(column, i) {
    return endsOf(column.value[i], column.reach[i]);
  }

  /** Return `n` or `documents` of an entry; a column keeps one number if all its entries agree. */
  count(column, i, name) {
    const counts = column[name];
    return Array.isArray(counts) ? counts[i] : column.value[i] === null ? null : counts;
  }

  /** Return row i minus row j in a column, with its error, ends and reason; null if the page has no such difference. */
  difference(column, i, j) {
    const pairs = this.pairsOf.get(column.name);
    if (i === j) return null;
    if (!pairs) return this.computed(column, i, j);
    const [a, b] = i < j ? [i, j] : [j, i];
    const at = a * this.rows.length - (a * (a + 1)) / 2 + (b - a - 1);
    const value = pairs.difference[at];
    if (value === null) return { value: null, error: null, ends: null, reason: "" };
    const ends = endsOf(value, pairs.reach[at]);
    const turned = i > j;
    return {
      value: turned ? -value : value,
      error: pairs.error[at],
      ends: ends && turned ? [-ends[1], -ends[0]] : ends,
      reason: pairs.reasons[at] ?? "",
    };
  }

  /** Return whether the page has differences of a column. */
  hasDifferences(name) {
    return this.pairsOf.has(name) || this.deviationsOf.has(name);
  }

  /** Return the difference with the error of both rows' deviations from each other. */
  computed(column, i, j) {
    const own = this.deviationsOf.get(column.name);
    if (!own) return null;
    if (column.value[i] === null || column.value[j] === null) return { value: null, error: null, ends: null, reason: "" };
    const value = column.value[i] - column.value[j];
    const without = (reason) => ({ value, error: null, ends: null, reason });
    if (own.within_hooks && this.rows[i].hook !== this.rows[j].hook) return without("comparable within a hook only");
    own.steps ??= new Int16Array(Uint8Array.from(atob(own.codes), (sign) => sign.charCodeAt(0)).buffer);
    own.places ??= new Map(own.rows.map((row, at) => [row, at]));
    const [a, b] = [own.places.get(i), own.places.get(j)];
    if (a === undefined || b === undefined) return without("saeval compare has its error");
    let sum = 0;
    for (let at = 0; at < own.documents; at += 1) {
      const apart = own.scale[a] * own.steps[a * own.documents + at] - own.scale[b] * own.steps[b * own.documents + at];
      sum += apart * apart;
    }
    const error = Math.sqrt(sum);
    const ends = error > 0 ? [value - own.reach * error, value + own.reach * error] : null;
    return { value, error, ends, reason: "" };
  }

  /** The controls of which a row can be subtracted, by their names in the suite. */
  get controls() {
    return [...new Set(this.rows.map((row) => row.control).filter(Boolean))];
  }

  /** Return the row of a control that belongs to a row: built from it, or else from the hook; -1 if there is none. */
  controlOf(i, name) {
    const row = this.rows[i];
    if (row.kind === "control") return -1;
    const here = this.all.filter((j) => this.rows[j].control === name && this.rows[j].hook === row.hook);
    const own = here.filter((j) => this.rows[j].of === row.name);
    const found = own.length ? own : here.filter((j) => !this.rows[j].of);
    return found.length === 1 ? found[0] : -1;
  }

  /** Return a value, or the value minus that of the row's control if `minus` names one. */
  number(column, i, minus = "") {
    if (!minus || !this.hasDifferences(column.name)) return column.value[i];
    const j = this.controlOf(i, minus);
    return j < 0 ? null : (this.difference(column, i, j)?.value ?? null);
  }

  /** Return why a value minus that of the row's control has no number; empty if it has one. */
  noDifference(column, i, minus) {
    if (this.rows[i].kind === "control") return "a control has no control of its own";
    const j = this.controlOf(i, minus);
    if (j < 0) return `no control ${minus} at this hook`;
    const without = [i, j].find((row) => column.value[row] === null);
    if (without !== undefined) return `${this.label(without)}: ${this.missing(column, without).reason}`;
    const found = this.difference(column, i, j);
    return found && found.value !== null ? "" : found?.reason || "the page has no such difference";
  }

  /** Return the colour and shape of each value of a property: those of a family everywhere, free ones for others. */
  marksOf(name) {
    this.assigned ??= new Map();
    if (!this.assigned.has(name)) {
      const known = new Map(Object.entries(this.marks));
      const values = [...new Set(this.all.filter((i) => this.rows[i].kind !== "control").map((i) => this.property(name, i)))].sort(ordered).map(shownProperty);
      const taken = new Set(values.filter((value) => known.has(value)).map((value) => known.get(value)[0]));
      const free = COLOURS.map((colour, at) => [colour, SHAPES[at % SHAPES.length]]).filter(([colour]) => !taken.has(colour));
      let next = 0;
      const mark = (value) => known.get(value) ?? (free.length ? free[next++ % free.length] : [COLOURS[0], SHAPES[0]]);
      this.assigned.set(name, new Map(values.map((value) => [value, mark(value)])));
    }
    return this.assigned.get(name);
  }

  /** Return the colour of a row in charts of its own: that of its family. */
  colourOf(i) {
    return this.marks[this.property("family", i)]?.[0] ?? COLOURS[0];
  }

  property(name, i) {
    if (name === "SAE") return this.rows[i].name;
    if (name === "hook") return this.rows[i].hook;
    if (name === "kind") return KINDS[this.rows[i].kind] ?? this.rows[i].kind;
    return this.properties.find((one) => one.name === name)?.values[i] ?? null;
  }

  /** Return the properties in which trained rows differ, with their distinct values. */
  get telling() {
    const names = ["kind", "hook", ...this.properties.map((one) => one.name)];
    const made = names.map((name) => {
      const values = this.all.map((i) => this.property(name, i));
      const distinct = [...new Set(values.filter((_, i) => this.rows[i].kind !== "control"))].sort(ordered);
      return { name, values, distinct, numeric: distinct.every((value) => value === null || typeof value === "number") };
    });
    return made.filter((one) => one.distinct.length > 1);
  }
}

function ordered(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

const shownProperty = (value) => (value === null ? "not declared" : String(value));
