// Elements whose texts are always set as text, never as markup, and what all parts of the page share.

/** Return an element. `attributes` may have `on`, an object of event handlers; null, false and undefined are left out. */
function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (key === "hidden") element.hidden = value;
    else if (key === "value" || key === "checked" || key === "selected") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const block = (name) => JSON.parse(document.getElementById(`data-${name}`).textContent);

/** Return the same parsed block each time; details are parsed only when somebody asks for one. */
const details = (() => {
  let parsed = null;
  return () => (parsed ??= block("details"));
})();

/** Tell screen readers and, for a moment, everybody. */
function say(text) {
  const place = document.getElementById("said");
  place.textContent = text;
  place.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => place.classList.remove("shown"), 4000);
}

/** Show content in the one dialog of the page; the button that opened it gets the focus back. */
function showDialog(title, ...content) {
  const dialog = document.getElementById("dialog");
  const close = h("button", { type: "button", class: "close", on: { click: () => dialog.close() } }, "Close");
  const heading = h("h2", { id: "dialog-title", tabindex: "-1" }, title);
  dialog.replaceChildren(h("header", {}, heading, close), h("div", { class: "content" }, ...content));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  heading.focus();
}

let serial = 0;
const newId = (stem) => `${stem}-${(serial += 1)}`;

/** Return a label with its select element; `choices` has [value, text] pairs. */
function choice(text, choices, value, change) {
  const options = choices.map(([name, shown]) => h("option", { value: name, selected: name === value }, shown));
  const select = h("select", { on: { change: (event) => change(event.target.value) } }, options);
  return h("label", { class: "choice" }, `${text} `, select);
}

function tick(text, checked, change, attributes = {}) {
  const box = h("input", { type: "checkbox", checked, on: { change: (event) => change(event.target.checked) } });
  return h("label", { class: "tick", ...attributes }, box, ` ${text}`);
}

/** Return a drop-down that Escape closes, and leaving it by Tab or by a click elsewhere. */
function menu(title, attributes, ...content) {
  const summary = h("summary", {}, title);
  const own = h("details", { class: "menu", ...attributes }, summary, h("div", { class: "panel" }, ...content));
  own.addEventListener("keydown", (event) => {
    if (!own.open) return;
    if (event.key === "Escape") {
      own.open = false;
      summary.focus();
    } else if (event.key === "Tab") {
      setTimeout(() => own.contains(document.activeElement) || (own.open = false));
    }
  });
  return own;
}

document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.menu[open]")) if (!open.contains(event.target)) open.open = false;
});

/** Return a name with places where it may be broken. */
const breakable = (text) => text.split(/(?<=[./_-])/).flatMap((part, at) => (at ? [h("wbr"), part] : [part]));

const scrolling = (label, ...children) =>
  h("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": label }, ...children);

const ARROWS = { lower: "\u00a0↓", higher: "\u00a0↑" };
const SENSE = { lower: "lower is better", higher: "higher is better" };

/** Format a number to four digits, as all tables do. */
function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 10 ** digits && size < 1e6) return value.toFixed(0);
  const text = value.toPrecision(digits);
  return size >= 1e-4 && size < 10 ** digits ? String(Number(text)) : Number(text).toExponential().replace("e+", "e");
}

/** Format a value to the second digit of its standard error. */
function withError(value, error) {
  if (value === null || value === undefined) return "";
  if (error === null || error === undefined) return number(value);
  if (error <= 1e-9 * Math.abs(value)) return `${number(value)} ± 0`;
  if (error === 0) return "0 ± 0";
  const digits = Math.max(0, 1 - Math.floor(Math.log10(error)));
  if (digits > 6) return `${value.toExponential(2)} ± ${error.toExponential(1)}`;
  return `${(value + 0).toFixed(digits)} ± ${error.toFixed(digits)}`;
}

/** Format the ends of an interval to the second digit of the error. */
function interval(ends, error) {
  if (!ends) return "";
  const digits = error ? Math.max(1, 1 - Math.floor(Math.log10(error))) : 0;
  const shown = error && digits <= 6 ? (end) => end.toFixed(digits) : (end) => number(end, 3);
  return `${shown(ends[0])} to ${shown(ends[1])}`;
}

/** Return both ends of an interval around a value: `reach` is half of it, or has both ends. */
function endsOf(value, reach) {
  if (reach === null || reach === undefined || value === null) return null;
  return Array.isArray(reach) ? reach : [value - reach, value + reach];
}
