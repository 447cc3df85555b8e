// Heatmaps of any metric over lambda (or what else sets the sparsity) and gamma, one per nonlinearity.
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const unique = (values) => [...new Set(values)];
const sorted = (values) => unique(values).sort((a, b) => a - b);
const choose = (label, options, act) => {
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.addEventListener("change", act);
  return [select, make("label", { hidden: options.length < 2 }, label, select)];
};

const heatmap = (family, column, kind) => {
  const mine = points.run.map((_, i) => i).filter((i) => done[i] && column.values[i] !== null && points.family[i] === family
    && (points.gamma[i] === 0 || points.variant[i] === kind));
  const names = Object.keys(points.axes);
  const axis = names.find((one) => unique(mine.map((i) => points.axes[one][i])).length > 1) ?? names[0];
  const xs = sorted(mine.map((i) => points.axes[axis][i]));
  const ys = sorted(mine.map((i) => points.gamma[i]));
  const cells = ys.map((y) => xs.map((x) => mine.filter((i) => points.axes[axis][i] === x && points.gamma[i] === y)));
  const z = cells.map((row) => row.map((cell) => (cell.length ? mean(cell.map((i) => column.values[i])) : null)));
  return { axis, xs, ys, z, counts: cells.map((row) => row.map((cell) => cell.length)) };
};

const heatmaps = (place) => {
  const kinds = unique(points.variant.filter((one, i) => one !== null && points.gamma[i] !== 0));
  const [kind, kindLabel] = choose("Penalty", (kinds.length ? kinds : ["none"]).map((one) => [one, one]), () => show());
  const [metric, metricLabel] = choose("Metric", metrics.map((one) => [one.metric, one.title]), () => show());
  if (metrics.some((one) => one.metric === "fvu")) metric.value = "fvu";
  const grid = make("div", { className: "grid" });
  place.append(make("div", { className: "choices" }, metricLabel, kindLabel), grid);
  const plots = points.families.map((family) => {
    const plot = make("div", { className: "plot" });
    grid.append(make("figure", {}, make("figcaption", {}, make("h3", { textContent: family })), plot));
    savable(plot);
    watcher.observe(plot);
    return plot;
  });
  const show = () => {
    const column = metrics.find((one) => one.metric === metric.value);
    const maps = plots.map((_, family) => heatmap(family, column, kind.value));
    const known = maps.flatMap(({ z }) => z.flat()).filter((value) => value !== null);
    maps.forEach(({ axis, xs, ys, z, counts }, family) => {
      const plot = plots[family];
      // Numbers where they fit into the cells, else a colour bar.
      const crowded = xs.length > 7;
      const cells = {
        type: "heatmap", x: xs.map(String), y: ys.map((y) => (y === 0 ? "off" : String(y))), z, text: counts,
        zmin: Math.min(...known), zmax: Math.max(...known), colorscale: scale, hoverongaps: false, xgap: 3, ygap: 3,
        showscale: crowded, colorbar: { thickness: 10, outlinewidth: 0 }, texttemplate: crowded ? "" : "%{z:.3r}", textfont: { size: 13 },
        hovertemplate: `${axis} %{x}, gamma %{y}<br>${escaped(column.title)} %{z:.4~g}<br>points: %{text}<extra></extra>`,
      };
      const plain = { type: "category", showgrid: false, zeroline: false };
      const axes = { xaxis: { ...plain, title: { text: axis } }, yaxis: { ...plain, title: { text: "gamma" } } };
      const key = `${metric.value} ${points.families[family]} ${kind.value}`.match(/[\w.]+/g).join("-");
      figures[key] = { data: [cells], layout: { ...axes, meta: [axis.replace(" ", "_"), "gamma", metric.value] } };
      built.delete(key);
      plot.dataset.figure = key;
      plot.style.height = `${90 + 46 * Math.max(2, ys.length)}px`;
      plot.parentElement.hidden = !xs.length || off.family.has(String(family));
      if (plot.dataset.drawn) draw(plot);
    });
  };
  show();
  return show;
};
