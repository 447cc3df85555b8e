// The page's data, and figures drawn from it.
const { name, figures, templates, dark, scale, points, arrays } = JSON.parse(document.getElementById("data").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
// After the page has been painted, so that one figure after the other appears.
const later = (act) => requestAnimationFrame(() => setTimeout(act));
const system = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
let isDark = system.matches;

const decoded = new Map();
const decode = (place) => {
  if (!decoded.has(place)) {
    const [kind, text] = arrays[place].split(":");
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
    decoded.set(place, new { f4: Float32Array, u2: Uint16Array, u4: Uint32Array }[kind](bytes));
  }
  return decoded.get(place);
};
const unpack = (value) => {
  if (Array.isArray(value)) return value.map(unpack);
  if (value === null || typeof value !== "object") return value;
  if (value.$ !== undefined) return decode(value.$);
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, unpack(part)]));
};

// Points and their groups: a group's points differ in their seeds only.
const { groups } = points;
const metrics = points.table.filter((column) => column.metric);
const done = points.table[0].values.map((state) => state === "done");
const off = { family: new Set(), setting: new Set() };
const visible = (place) => !off.family.has(String(place.family)) && !off.setting.has(String(place.setting));
const members = (trace, index) => (trace.meta.of === "groups" ? groups.members[index].filter((one) => done[one]) : [index]);
const HOVERED = 10; // metrics in a hover text; the table has all
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const describe = (group) => {
  const found = groups.members[group].filter((one) => done[one]);
  const lines = [`<b>${escaped(groups.label[group])}</b>`];
  lines.push(found.length > 1 ? `n = ${found.length} seeds, mean ± 95 % interval` : `run ${escaped(points.run[found[0]])}`);
  for (const { head, metric, values } of metrics.slice(0, HOVERED)) {
    const known = found.map((one) => values[one]).filter((value) => value !== null);
    const half = groups.half[metric]?.[groups.several.indexOf(group)];
    const width = half == null ? "" : ` ± ${Number(half.toPrecision(2))}`;
    if (known.length) lines.push(`${head} ${Number(mean(known).toPrecision(4))}${width}`);
  }
  if (found.some((one) => points.link[one])) lines.push("<i>has a feature page: click</i>");
  return lines.join("<br>");
};

// A figure's arrays and hover texts are made when it is first drawn or saved.
const built = new Map();
const figure = (key) => {
  if (!built.has(key)) {
    const { data, layout } = unpack(figures[key]);
    for (const trace of data.filter((one) => one.customdata)) {
      const whole = trace.mode !== "lines";
      const texts = new Map();
      const made = (one) => {
        if (trace.meta.of === "groups") return describe(one);
        if (!whole) return escaped(points.label[one]);
        return `run ${escaped(points.run[one])}, one of<br>${describe(groups.members.findIndex((group) => group.includes(one)))}`;
      };
      const text = (one) => texts.get(one) ?? texts.set(one, made(one)).get(one);
      trace.text = Array.from(trace.customdata, text);
      const numbers = whole || !trace.hovertemplate ? "" : `<br>${trace.hovertemplate}`;
      trace.hovertemplate = `%{text}${numbers}<extra></extra>`;
    }
    built.set(key, { data, layout });
  }
  return built.get(key);
};

// Figures carry the colours of the light look; the dark one swaps each for its partner and keeps its alpha.
const recolour = (value) => {
  if (typeof value === "string") return isDark && value[0] === "#" ? (dark[value.slice(0, 7)] ?? value.slice(0, 7)) + value.slice(7) : value;
  if (Array.isArray(value)) return value.map(recolour);
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recolour(part)]));
};
const looking = (key) => {
  const { data, layout } = recolour(figure(key));
  for (const trace of data) trace.visible = !trace.meta || visible(trace.meta);
  return { data, layout: { ...layout, template: templates[isDark ? "dark" : "light"], showlegend: false, uirevision: "kept" } };
};
const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };
const draw = (plot) => {
  const { data, layout } = looking(plot.dataset.figure);
  // Under a finger a drag is for scrolling the page.
  Plotly.react(plot, data, { ...layout, dragmode: touch ? false : "zoom" }, config);
  if (plot.dataset.drawn) return;
  plot.dataset.drawn = "yes";
  plot.on("plotly_click", ({ points: [{ data: trace, pointIndex }] }) => {
    if (trace.customdata && !touch) pick(members(trace, trace.customdata[pointIndex]));
  });
};
const redraw = () => all(".plot[data-drawn]").forEach(draw);

// A figure is drawn when it comes near the window, so that many points do not hold up the page.
const waiting = [];
const drawNext = () => {
  const plot = waiting.shift();
  if (!plot) return;
  if (!plot.dataset.drawn) draw(plot);
  later(drawNext);
};
const watcher = new IntersectionObserver(
  (entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    near.forEach((plot) => watcher.unobserve(plot));
    if (waiting.push(...near) === near.length) drawNext();
  },
  { rootMargin: "600px" },
);
