// Every figure can be saved: as it looks, or its numbers.
const save = (file, href) => make("a", { download: file, href }).click();
const csv = (rows) => {
  const text = (value) => (value == null || Number.isNaN(value) ? "" : typeof value === "number" ? String(Number(value.toPrecision(7))) : String(value));
  const cell = (value) => (/[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  return rows.map((row) => `${row.map((value) => cell(text(value))).join(",")}\n`).join("");
};
const series = ({ meta, name: title }) => (meta ? `${points.families[meta.family]} · ${points.settings[meta.setting]}` : title);

// Rows of a figure's data: heatmaps one row per cell, all else one row per marker or place on a line.
const numbers = (key) => {
  const { data, layout: { meta: [x, y, z] } } = figure(key);
  if (z) {
    const cells = data.flatMap((trace) => trace.z.flatMap((row, j) => row.map((value, i) => [trace.x?.[i] ?? i, trace.y[j], value])));
    return [[x, y, z], ...cells.filter((cell) => cell[2] !== null)];
  }
  const marked = data.some((trace) => trace.marker);
  const bars = data.some((trace) => trace.error_x);
  const head = ["series", "run", x, y, ...(marked ? ["n", "on_frontier"] : []), ...(bars ? [`${x}_interval`, `${y}_interval`] : [])];
  const rows = data.filter((trace) => trace.hoverinfo !== "skip").flatMap((trace) => Array.from(trace.x, (value, i) => {
    const found = trace.customdata ? members(trace, trace.customdata[i]) : [];
    const single = !Array.isArray(trace.marker?.symbol);
    const about = marked ? [found.length, single ? "" : trace.marker.symbol[i].endsWith("-open") ? "no" : "yes"] : [];
    const halves = bars ? [trace.error_x?.array[i], trace.error_y?.array[i]] : [];
    return [series(trace), found.map((one) => points.run[one]).join(" "), value, trace.y[i], ...about, ...halves];
  }));
  return [head, ...rows.filter((row) => !Number.isNaN(row[3]))];
};

const image = async (key, title, format) => {
  const { data, layout } = looking(key);
  const words = { title: { text: escaped(title), x: 0.02, font: { size: 16 } }, showlegend: data.length > 1 };
  const paper = { paper_bgcolor: isDark ? "#1a1e23" : "#ffffff", margin: { l: 60, r: 20, t: 56, b: 50 } };
  const size = { format, width: 900, height: 560, scale: format === "png" ? 2 : 1 };
  save(`${name}-${key}.${format}`, await Plotly.toImage({ data, layout: { ...layout, ...words, ...paper } }, size));
};
const savers = {
  SVG: (key, title) => image(key, title, "svg"),
  PNG: (key, title) => image(key, title, "png"),
  CSV: (key) => save(`${name}-${key}.csv`, URL.createObjectURL(new Blob([csv(numbers(key))], { type: "text/csv" }))),
};

// Buttons in the corner of a figure's card.
const savable = (plot) => {
  const title = plot.closest("figure").querySelector("h3").textContent;
  const buttons = Object.entries(savers).map(([kind, act]) => {
    const button = make("button", { type: "button", textContent: kind, ariaLabel: `Save ${title} as ${kind}` });
    button.addEventListener("click", () => act(plot.dataset.figure, title));
    return button;
  });
  plot.before(make("div", { className: "save" }, ...buttons));
};
