"use strict";
(() => {
  const { name, figures, templates, dark, scale, points, arrays } = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const off = { family: new Set(), setting: new Set() };
  const look = document.getElementById("look");
  let isDark = system.matches;

  // Numbers: packed arrays, and how they read.
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
  const short = (value) => String(Number(value.toPrecision(4)));
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // Points and their groups: points that differ in seeds only.
  const { groups } = points;
  const metrics = points.table.filter((column) => column.metric);
  const states = points.table[0].values;
  const visible = (place) => !off.family.has(String(place.family)) && !off.setting.has(String(place.setting));
  const half = (metric, group) => (groups.half[metric] || [])[groups.several.indexOf(group)];
  const members = (trace, index) => (trace.meta?.of === "groups" ? groups.members[index] : [index]).filter(
    (one) => trace.meta?.of !== "groups" || states[one] === "done" || groups.members[index].length === 1);
  const describe = (group) => {
    const found = groups.members[group].filter((one) => states[one] === "done");
    const lines = [`<b>${escaped(groups.label[group])}</b>`];
    lines.push(found.length > 1 ? `mean of ${found.length} seeds ± 95 % interval` : `run ${escaped(points.run[found[0]])}`);
    for (const { head, metric, values } of metrics) {
      const known = found.map((one) => values[one]).filter((value) => value !== null);
      if (!known.length) continue;
      const width = half(metric, group);
      const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
      lines.push(`${head} ${short(mean)}${width ? ` ± ${Number(width.toPrecision(2))}` : ""}`);
    }
    if (found.some((one) => points.link[one])) lines.push("<i>click: its row, with the feature page</i>");
    return lines.join("<br>");
  };

  // A figure's traces are built when it is first drawn.
  const built = new Map();
  const figure = (key) => {
    if (!built.has(key)) {
      const { data, layout } = unpack(figures[key]);
      for (const trace of data) {
        if (!trace.customdata) continue;
        const texts = new Map();
        const text = trace.meta.of === "groups" ? describe : (one) => escaped(points.label[one]);
        trace.text = Array.from(trace.customdata, (one) => texts.get(one) ?? texts.set(one, text(one)).get(one));
        trace.hovertemplate = `%{text}${trace.meta.of === "groups" ? "" : `<br>${trace.hovertemplate || ""}`}<extra></extra>`;
      }
      built.set(key, { data, layout });
    }
    return built.get(key);
  };
  // Figures carry the colours of the light look; the dark one swaps each for its partner, a faint one's alpha kept.
  const recolour = (value) => {
    if (typeof value === "string") return isDark && value[0] === "#" ? (dark[value.slice(0, 7)] || value.slice(0, 7)) + value.slice(7) : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(recolour);
    if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recolour(part)]));
  };
  const look_of = () => templates[isDark ? "dark" : "light"];
  const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]] };
  const draw = (plot) => {
    const { data, layout } = recolour(figure(plot.dataset.figure));
    for (const trace of data) trace.visible = !trace.meta || visible(trace.meta);
    const page = { template: look_of(), showlegend: false, uirevision: "kept" };
    // Under a finger a drag is for scrolling the page.
    Plotly.react(plot, data, { ...layout, ...page, dragmode: touch ? false : "zoom" }, config);
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    plot.on("plotly_click", ({ points: [{ data: trace, pointIndex }] }) => {
      if (trace.customdata && !touch) pick(members(trace, trace.customdata[pointIndex]));
    });
  };
  // A figure is drawn when it comes near the window, so that many points do not hold up the page.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "600px" },
  );
  const redraw = () => all(".plot[data-drawn]").forEach(draw);

  // Every figure can be saved, as it looks or as its numbers.
  const save = (file, url) => make("a", { download: file, href: url }).click();
  const csv = (rows) => {
    const cell = (value) => (/[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
    const text = (value) => (value == null || Number.isNaN(value) ? "" : typeof value === "number" ? String(Number(value.toPrecision(7))) : String(value));
    return rows.map((row) => row.map((value) => cell(text(value))).join(",")).join("\n") + "\n";
  };
  const series = ({ meta, name: title }) => (meta ? [points.families[meta.family], points.settings[meta.setting]].join(" · ") : title);
  const table = (key) => {
    const { data, layout } = figure(key);
    const [x, y, z] = layout.meta;
    if (z) {
      const rows = data.flatMap((trace) => trace.z.flatMap((row, j) => row.map((value, i) => [trace.x?.[i] ?? i, trace.y[j], value])));
      return [[x, y, z], ...rows.filter((row) => row[2] !== null)];
    }
    const bars = data.some((trace) => trace.error_x);
    const front = data.some((trace) => trace.meta?.of === "groups");
    const head = ["series", "run", x, y, ...(front ? ["n", "on_frontier"] : []), ...(bars ? [`${x}_interval`, `${y}_interval`] : [])];
    const rows = data.filter((trace) => trace.hoverinfo !== "skip").flatMap((trace) => Array.from(trace.x, (value, i) => {
      const runs = trace.customdata ? members(trace, trace.customdata[i]) : [];
      const seen = front && [runs.length, trace.meta.of === "groups" ? (trace.marker.symbol[i].endsWith("-open") ? "no" : "yes") : ""];
      const widths = bars && [trace.error_x?.array[i], trace.error_y?.array[i]];
      return [series(trace), runs.map((one) => points.run[one]).join(" "), value, trace.y[i], ...(seen || []), ...(widths || [])];
    }));
    return [head, ...rows.filter((row) => !Number.isNaN(row[3]))];
  };
  const savers = {
    SVG: (key, title) => image(key, title, "svg"),
    PNG: (key, title) => image(key, title, "png"),
    CSV: (key) => save(`${name}-${key}.csv`, URL.createObjectURL(new Blob([csv(table(key))], { type: "text/csv" }))),
  };
  const image = async (key, title, format) => {
    const { data, layout } = recolour(figure(key));
    for (const trace of data) trace.visible = !trace.meta || visible(trace.meta);
    const page = { template: look_of(), title: { text: escaped(title), x: 0.02, font: { size: 16 } }, paper_bgcolor: isDark ? "#1a1e23" : "#ffffff" };
    const size = { width: 900, height: 560, scale: format === "png" ? 2 : 1 };
    const margin = { l: 60, r: 20, t: 56, b: 50 };
    const url = await Plotly.toImage({ data, layout: { ...layout, ...page, margin, showlegend: data.length > 1 } }, { format, ...size });
    save(`${name}-${key}.${format}`, url);
  };
  const savable = (plot) => {
    const title = plot.closest("figure").querySelector("h3")?.textContent || plot.dataset.figure;
    const buttons = Object.entries(savers).map(([kind, act]) => {
      const button = make("button", { type: "button", textContent: kind, title: `Save as ${kind}` });
      button.setAttribute("aria-label", `Save ${title} as ${kind}`);
      button.addEventListener("click", () => act(plot.dataset.figure, title));
      return button;
    });
    plot.before(make("div", { className: "save" }, ...buttons));
    watcher.observe(plot);
  };

  // Heatmaps of any metric over lambda and gamma, from the columns of the table.
  const maps = document.querySelector(".maps");
  const choose = (label, options, act) => {
    const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, textContent: text })));
    select.addEventListener("change", act);
    return [select, make("label", { hidden: options.length < 2 }, label, select)];
  };
  const unique = (values) => [...new Set(values)];
  const heatmaps = () => {
    const none = points.settings[0];
    const kinds = unique(points.variant.filter((one, i) => one !== null && points.gamma[i] !== 0));
    const [kind, kindLabel] = choose("Penalty", (kinds.length ? kinds : [none]).map((one) => [one, one]), () => show());
    const [metric, metricLabel] = choose("Metric", metrics.map(({ metric: value, title }) => [value, title]), () => show());
    const first = ["fvu", "l0"].find((one) => metrics.some((column) => column.metric === one));
    if (first) metric.value = first;
    const grid = make("div", { className: "grid" });
    maps.append(make("div", { className: "choices" }, metricLabel, kindLabel), grid);
    const cards = points.families.map((family, index) => {
      const plot = make("div", { className: "plot" });
      plot.dataset.figure = `map-${index}`;
      const card = make("figure", {}, make("figcaption", {}, make("h3", { textContent: family })), plot);
      card.dataset.family = index;
      grid.append(card);
      savable(plot);
      return { plot, card };
    });
    const show = () => {
      const column = metrics.find((one) => one.metric === metric.value);
      const inside = points.run.map((_, i) => i).filter((i) => states[i] === "done" && column.values[i] !== null
        && (points.gamma[i] === 0 || points.variant[i] === kind.value));
      const maps = cards.map(({ plot }, family) => {
        const mine = inside.filter((i) => points.family[i] === family);
        const axis = Object.keys(points.axes).find((one) => unique(mine.map((i) => points.axes[one][i])).length > 1) || Object.keys(points.axes)[0];
        const sorted = (values) => unique(values).sort((a, b) => a - b);
        const [xs, ys] = [sorted(mine.map((i) => points.axes[axis][i])), sorted(mine.map((i) => points.gamma[i]))];
        const cells = ys.map((y) => xs.map((x) => mine.filter((i) => points.axes[axis][i] === x && points.gamma[i] === y)));
        const z = cells.map((row) => row.map((cell) => (cell.length ? cell.reduce((sum, i) => sum + column.values[i], 0) / cell.length : null)));
        return { plot, axis, xs, ys, z, counts: cells.map((row) => row.map((cell) => cell.length)) };
      });
      const known = maps.flatMap(({ z }) => z.flat()).filter((value) => value !== null);
      maps.forEach(({ plot, axis, xs, ys, z, counts }, family) => {
        const crowded = xs.length > 7;
        const plain = { type: "category", showgrid: false, zeroline: false };
        const key = `map-${metric.value}-${series({ meta: { family, setting: 0 } }).split(" · ").slice(0, -1).join(" ")}-${kind.value}`.match(/[\w.]+/g).join("-");
        figures[key] = {
          data: [{
            type: "heatmap", x: xs.map(String), y: ys.map((y) => (y === 0 ? "off" : String(y))), z, text: counts, zmin: Math.min(...known), zmax: Math.max(...known),
            colorscale: scale, hoverongaps: false, xgap: 3, ygap: 3, showscale: crowded, colorbar: { thickness: 10, outlinewidth: 0 },
            texttemplate: crowded ? "" : "%{z:.3r}", textfont: { size: 13 },
            hovertemplate: `${axis} %{x}, gamma %{y}<br>${escaped(column.title)} %{z:.4~g}<br>points: %{text}<extra></extra>`,
          }],
          layout: { xaxis: { ...plain, title: { text: axis } }, yaxis: { ...plain, title: { text: "gamma" } }, meta: [axis.replace(" ", "_"), "gamma", metric.value] },
        };
        built.delete(key);
        plot.dataset.figure = key;
        plot.style.height = `${90 + 46 * Math.max(2, ys.length)}px`;
        plot.closest("figure").hidden = !xs.length || off.family.has(String(family));
        if (plot.dataset.drawn) draw(plot);
      });
    };
    show();
    return show;
  };

  // Tables sort by a click on a head; long ones have a field that filters.
  const number = /^[-+\u2212]?[\d,]*\.?\d+(e[-+]?\d+)?/i;
  const value = (cell) => {
    const text = cell.dataset.value ?? cell.textContent;
    const found = cell.classList.contains("number") && number.exec(text.trim());
    return found ? Number(found[0].replace("\u2212", "-").replace(/,/g, "")) : cell.classList.contains("number") ? "" : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  const sortable = (table, label) => {
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      head.scope = "col";
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const keys = new Map(rows.map((row) => [row, value(row.cells[column])]));
        rows.sort((one, two) => {
          const [a, b] = [keys.get(one), keys.get(two)];
          return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
        });
        table.tBodies[0].append(...rows);
      });
    });
    if (rows.length < 8) return () => {};
    const input = make("input", { type: "search", placeholder: "Filter, such as prolu 0.25" });
    input.setAttribute("aria-label", `Filter ${label}`);
    const status = make("span");
    status.setAttribute("role", "status");
    (table.closest(".wide") || table).before(make("div", { className: "find" }, input, status));
    const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/);
      let shown = 0;
      rows.forEach((row) => {
        row.hidden = !(words.every((word) => texts.get(row).includes(word)) && visible(row.dataset));
        shown += !row.hidden;
      });
      status.textContent = `${shown} of ${rows.length} ${label}`;
    };
    input.addEventListener("input", filter);
    filter();
    return (clear) => { if (clear) input.value = ""; filter(); };
  };

  // The table of all points, from the same columns.
  const every = document.querySelector(".points");
  const cell = (column, i) => {
    const found = column.values[i];
    if (found === null) return make("td", { className: column.number ? "number" : "" });
    if (!column.number) return make("td", { textContent: String(found) });
    const text = column.digits !== undefined ? found.toFixed(column.digits) : Number.isInteger(found) ? found.toLocaleString("en") : String(found);
    const made = make("td", { className: "number", textContent: text });
    made.dataset.value = found;
    return made;
  };
  const linked = points.link.some(Boolean);
  const heads = [{ head: "run", title: "run id" }, ...(linked ? [{ head: "features", title: "feature page of the run" }] : []), ...points.table];
  const body = points.run.map((run, i) => {
    const link = points.link[i] ? [make("a", { href: points.link[i], textContent: "features" })] : [];
    const row = make("tr", {}, make("td", { textContent: run }), ...(linked ? [make("td", {}, ...link)] : []), ...points.table.map((column) => cell(column, i)));
    if (points.family[i] !== null) Object.assign(row.dataset, { family: points.family[i], setting: points.setting[i] });
    return row;
  });
  every.append(
    make("thead", {}, make("tr", {}, ...heads.map(({ head, title, number: right }) => make("th", { className: right ? "number" : "", title, textContent: head })))),
    make("tbody", {}, ...body),
  );
  const wide = make("div", { className: "wide" });
  every.before(wide);
  wide.append(every);
  const filters = all("table").map((one) => sortable(one, one === every ? "points" : "rows"));
  const pick = (chosen) => {
    body.forEach((row, i) => row.classList.toggle("picked", chosen.includes(i)));
    if (body[chosen[0]].hidden) filters.at(-1)(true);
    wide.scrollLeft = 0;
    body[chosen[0]].scrollIntoView({ block: "center", behavior: "smooth" });
  };

  const remap = maps && metrics.length ? heatmaps() : () => {};
  const paint = () => {
    document.documentElement.style.colorScheme = isDark ? "dark" : "light";
    look.textContent = isDark ? "Light" : "Dark";
    look.setAttribute("aria-label", `Switch to the ${isDark ? "light" : "dark"} look`);
    for (const mark of all("[data-colour]")) mark.style.color = recolour(mark.dataset.colour);
    redraw();
  };
  look.addEventListener("click", () => { isDark = !isDark; paint(); });
  system.addEventListener("change", () => { isDark = system.matches; paint(); });
  addEventListener("beforeprint", () => all(".plot:not([data-drawn])").forEach(draw));
  for (const chip of all(".chip")) {
    const kind = chip.dataset.family === undefined ? "setting" : "family";
    chip.addEventListener("click", () => {
      const on = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", on);
      off[kind][on ? "delete" : "add"](chip.dataset[kind]);
      redraw();
      remap();
      filters.forEach((filter) => filter());
    });
  }
  for (const panes of all(".panes")) {
    const tabs = all(".tabs button", panes);
    const grids = all(".grid", panes);
    const open = (chosen) => tabs.forEach((tab, index) => {
      tab.setAttribute("aria-pressed", tab === chosen);
      grids[index].hidden = tab !== chosen;
    });
    for (const tab of tabs) tab.addEventListener("click", () => open(tab));
  }
  paint();
  all(".plot:not(.maps .plot)").forEach(savable);
})();
