// The page's controls, and the order in which it comes to life: a figure first, then all that is further down.
const look = document.getElementById("look");
const filters = [];
let remap = () => {};
let pick = () => {};

const paint = () => {
  document.documentElement.style.colorScheme = isDark ? "dark" : "light";
  look.textContent = isDark ? "Light" : "Dark";
  look.ariaLabel = `Switch to the ${isDark ? "light" : "dark"} look`;
  for (const mark of all("[data-colour]")) mark.style.color = recolour(mark.dataset.colour);
  redraw();
};
look.addEventListener("click", () => { isDark = !isDark; paint(); });
system.addEventListener("change", () => { isDark = system.matches; paint(); });
addEventListener("beforeprint", () => all(".plot:not([data-drawn])").forEach(draw));

for (const chip of all(".chip")) {
  const kind = chip.dataset.family === undefined ? "setting" : "family";
  chip.addEventListener("click", () => {
    const on = chip.ariaPressed !== "true";
    chip.ariaPressed = on;
    off[kind][on ? "delete" : "add"](chip.dataset[kind]);
    redraw();
    remap();
    filters.forEach((filter) => filter());
  });
}

for (const panes of all(".panes")) {
  const tabs = all(".tabs button", panes);
  const grids = all(".grid", panes);
  for (const tab of tabs) {
    tab.addEventListener("click", () => tabs.forEach((other, index) => {
      other.ariaPressed = other === tab;
      grids[index].hidden = other !== tab;
    }));
  }
}

paint();
const plots = all(".plot");
plots.forEach(savable);
if (plots.length) draw(plots[0]);
later(() => {
  filters.push(...all("table").map((table) => sortable(table, "rows")));
  const [filter, find] = pointsTable(document.querySelector(".every"));
  filters.push(filter);
  pick = find;
  const maps = document.querySelector(".maps");
  if (maps && metrics.length) remap = heatmaps(maps);
  plots.slice(1).forEach((plot) => watcher.observe(plot));
});
