// Tables sort by a click on a head; long ones have a field that filters.
const leading = /^[-+\u2212]?[\d,]*\.?\d+(e[-+]?\d+)?/i;
const value = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const found = cell.classList.contains("number") && leading.exec(text);
  if (found) return Number(found[0].replace("\u2212", "-").replace(/,/g, ""));
  return cell.firstElementChild?.tagName === "I" ? "" : text;
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b, undefined, { numeric: true }));
const FILTERED = 8;

const sortable = (table, things) => {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    head.scope = "col";
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach((other) => { other.ariaSort = "none"; });
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      const keys = new Map(rows.map((row) => [row, value(row.cells[column])]));
      rows.sort((one, two) => {
        const [a, b] = [keys.get(one), keys.get(two)];
        return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
  if (rows.length < FILTERED) return () => {};
  const input = make("input", { type: "search", placeholder: "Filter, such as prolu 0.25", ariaLabel: `Filter ${things}` });
  const status = make("span", { role: "status" });
  table.parentElement.before(make("div", { className: "find" }, input, status));
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !(visible(row.dataset) && words.every((word) => texts.get(row).includes(word)));
    status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} ${things}`;
  };
  input.addEventListener("input", filter);
  filter();
  return (clear) => {
    if (clear) input.value = "";
    filter();
  };
};

// The table of all points, from the columns that the figures use.
const shown = ({ values, digits, number }, i) => {
  if (values[i] === null) return make("td");
  if (!number) return make("td", { textContent: values[i] });
  const text = digits !== undefined ? values[i].toFixed(digits) : values[i].toLocaleString("en", { maximumFractionDigits: 12 });
  const cell = make("td", { className: "number", textContent: text });
  cell.dataset.value = values[i];
  return cell;
};
const pointsTable = (place) => {
  const linked = points.link.some(Boolean);
  const features = (link) => (linked ? [make("td", {}, ...(link ? [make("a", { href: link, textContent: "features" })] : []))] : []);
  const heads = [{ head: "run", title: "run id" }, ...(linked ? [{ head: "features", title: "the run's feature page" }] : []), ...points.table];
  const rows = points.run.map((run, i) => {
    const row = make("tr", {}, make("td", { textContent: run }), ...features(points.link[i]), ...points.table.map((column) => shown(column, i)));
    if (points.family[i] !== null) Object.assign(row.dataset, { family: points.family[i], setting: points.setting[i] });
    return row;
  });
  const head = heads.map(({ head: text, title, number }) => make("th", { title, className: number ? "number" : "" }, text));
  const table = make("table", { className: "points" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  place.replaceChildren(table);
  const filter = sortable(table, "points");
  const pick = (chosen) => {
    rows.forEach((row, i) => row.classList.toggle("picked", chosen.includes(i)));
    if (chosen.some((i) => rows[i].hidden)) filter(true);
    place.scrollLeft = 0;
    rows[chosen[0]].scrollIntoView({ block: "center", behavior: "smooth" });
  };
  return [filter, pick];
};
