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
// A figure's arrays and hover texts are made when it is first drawn or saved.
const built = new Map();
const figure = (key) => {
  if (!built.has(key)) {
    const { data, layout } = unpack(figures[key]);
    for (const trace of data.filter((one) => one.customdata)) {
      const about = (one) => {
        if (trace.meta.of === "groups") return groups.hover[one];
        if (trace.mode === "lines") return escaped(points.label[one]);
        return `run ${escaped(points.run[one])}, one of<br>${groups.hover[groups.members.findIndex((group) => group.includes(one))]}`;
      };
      trace.text = Array.from(trace.customdata, about);
      const numbers = trace.mode !== "lines" || !trace.hovertemplate ? "" : `<br>${trace.hovertemplate}`;
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
