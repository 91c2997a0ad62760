// Copies of a table as Markdown, LaTeX and CSV. Names were escaped for each of them when the page was written.

const SPECIAL = { "±": "$\\pm$", "–": "--", "−": "$-$", "×": "$\\times$", "%": "\\%", "_": "\\_", "&": "\\&", "#": "\\#" };

/** A table to copy: headers and lines of cells; a cell is {name} for a name, {text} for our words, or {value}. */
class Copy {
  constructor(headers, lines, forms) {
    Object.assign(this, { headers, lines, forms });
  }

  /** Return a cell in a format. */
  cell(cell, form) {
    if ("name" in cell) return this.forms[cell.name]?.[form] ?? cell.name;
    const text = cell.text ?? "";
    if (form === "tex") return text.replace(/[±–−×%_&#]/g, (sign) => SPECIAL[sign]);
    if (form === "csv") return /^[=+\-@]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return text.replaceAll("|", "\\|");
  }

  get markdown() {
    const headers = this.headers.map((header) => this.cell(header, "md") + (ARROWS[header.better] ?? ""));
    const lines = this.lines.map((line) => line.map((cell) => this.cell(cell, "md")));
    const rule = this.headers.map((header) => (header.number ? "---:" : "---"));
    return [headers, rule, ...lines].map((line) => `| ${line.join(" | ")} |`).join("\n") + "\n";
  }

  get latex() {
    const arrows = { lower: " $\\downarrow$", higher: " $\\uparrow$" };
    const headers = this.headers.map((header) => this.cell(header, "tex") + (arrows[header.better] ?? ""));
    const lines = this.lines.map((line) => line.map((cell) => this.cell(cell, "tex")));
    const shape = this.headers.map((header) => (header.number ? "r" : "l")).join("");
    const row = (line) => `${line.join(" & ")} \\\\`;
    return ["% needs \\usepackage{booktabs,textcomp}", `\\begin{tabular}{${shape}}`, "\\toprule", row(headers),
      "\\midrule", ...lines.map(row), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
  }

  /** Values and standard errors have columns of their own. */
  get csv() {
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const headers = this.headers.flatMap((header) => {
      const name = this.cell(header, "csv");
      return header.error ? [name, `${name}.stderr`] : [name];
    });
    const lines = this.lines.map((line) => line.flatMap((cell, at) => {
      if (!this.headers[at].error) return [this.cell(cell, "csv")];
      return [cell.value, cell.error].map((value) => (value === null || value === undefined ? "" : String(value)));
    }));
    return [headers, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
  }
}

/** Put text on the clipboard, or into a box from which it can be copied if the browser forbids that. */
async function putOnClipboard(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch {
    const area = h("textarea", { rows: "20", readonly: true, "aria-label": what });
    area.value = text;
    showDialog(what, h("p", {}, "Copy this text:"), area);
    area.select();
  }
}
