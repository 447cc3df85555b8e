"use strict";
(() => {
  const { figures, templates, dark } = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const off = { family: new Set(), setting: new Set() };
  const look = document.getElementById("look");
  const rows = all(".points tbody tr");
  const search = document.querySelector(".find input");
  let isDark = system.matches;

  // Figures carry the colours of the light look; the dark one swaps each for its partner.
  const recolour = (value) => {
    if (typeof value === "string") return (isDark && dark[value]) || value;
    if (Array.isArray(value)) return value.map(recolour);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recolour(part)]));
  };
  const visible = (place) => !off.family.has(String(place.family)) && !off.setting.has(String(place.setting));

  const save = {
    name: "save",
    title: "Save as SVG",
    icon: Plotly.Icons.camera,
    click: (plot) => {
      const background = isDark ? "#1a1e23" : "#ffffff";
      const layout = { ...plot.layout, showlegend: true, paper_bgcolor: background };
      const options = { format: "svg", width: 800, height: 500, filename: plot.dataset.figure };
      Plotly.downloadImage({ data: plot.data, layout }, options);
    },
  };
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", save]],
  };

  const draw = (plot) => {
    const { data, layout } = recolour(figures[plot.dataset.figure]);
    for (const trace of data) trace.visible = !trace.meta || visible(trace.meta);
    const page = { template: templates[isDark ? "dark" : "light"], showlegend: false, uirevision: "kept" };
    // Under a finger a drag is for scrolling the page.
    Plotly.react(plot, data, { ...layout, ...page, dragmode: touch ? false : "zoom" }, config);
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    if (!touch) plot.on("plotly_click", ({ points }) => pick(points[0].customdata));
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
      filter();
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

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word)) && visible(row.dataset));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.querySelector(".find span").textContent = `${shown} of ${rows.length} points`;
  };
  search.addEventListener("input", filter);

  const heads = all(".points th");
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b));
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    rows.sort((one, two) => {
      const [a, b] = [value(one, column), value(two, column)];
      return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
    });
    document.querySelector(".points tbody").append(...rows);
  }));

  const pick = (run) => {
    const row = rows.find((one) => one.dataset.run === run);
    if (!row) return;
    rows.forEach((one) => one.classList.toggle("picked", one === row));
    row.scrollIntoView({ block: "center", behavior: "smooth" });
  };

  paint();
  filter();
  all(".plot").forEach((plot) => watcher.observe(plot));
})();
