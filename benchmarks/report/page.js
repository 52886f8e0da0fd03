const plots = [...document.querySelectorAll(".js-plotly-plot")];
const tables = [...document.querySelectorAll("table")];
const hidden = new Set();

// Each was drawn before its neighbours stood beside it.
plots.forEach(plot => Plotly.Plots.resize(plot));

// Light and dark: as the system is set, until the button says otherwise.
const paint = theme => {
  document.documentElement.dataset.theme = theme;
  const [ink, grid] = theme === "dark" ? ["#e8e8e8", "#3a3f46"] : ["#222222", "#e4e4e4"];
  for (const plot of plots) {
    const changes = { "font.color": ink };
    for (const axis of ["xaxis", "yaxis"])
      Object.assign(changes, { [`${axis}.gridcolor`]: grid, [`${axis}.linecolor`]: ink, [`${axis}.tickcolor`]: ink });
    (plot.layout.shapes || []).forEach((_, i) => changes[`shapes[${i}].line.color`] = ink);
    Plotly.relayout(plot, changes);
    const baseline = plot.data.flatMap((trace, i) => trace.meta.includes("baseline") ? [i] : []);
    if (baseline.length) Plotly.restyle(plot, { "line.color": ink, "marker.color": ink }, baseline);
  }
};
const system = matchMedia("(prefers-color-scheme: dark)");
paint(system.matches ? "dark" : "light");
system.addEventListener("change", () => paint(system.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () =>
  paint(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

// A row is shown if its mixer is and all words of the filter stand in it.
const show = () => {
  for (const table of tables) {
    const filter = document.querySelector(`.filter[data-table=${table.id}]`).value;
    const words = filter.toLowerCase().split(/[\s,]+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = hidden.has(row.dataset.mixer) || !words.every(word => text.includes(word));
    }
  }
};
document.querySelectorAll(".filter").forEach(input => input.addEventListener("input", show));

const buttons = [...document.querySelectorAll("#mixers button[data-mixer]")];
const toggle = () => {
  buttons.forEach(button => button.setAttribute("aria-pressed", !hidden.has(button.dataset.mixer)));
  for (const plot of plots)
    Plotly.restyle(plot, { visible: plot.data.map(trace => !hidden.has(trace.meta[0])) });
  show();
};
buttons.forEach(button => button.addEventListener("click", () => {
  const mixer = button.dataset.mixer;
  hidden.has(mixer) ? hidden.delete(mixer) : hidden.add(mixer);
  toggle();
}));
document.getElementById("all").addEventListener("click", () => { hidden.clear(); toggle(); });

// Sorting: a first click puts the largest number or the first word on top.
const key = (row, column) => {
  const text = row.cells[column].dataset.key, number = Number(text);
  return text === "" || Number.isNaN(number) ? text : number;
};
for (const table of tables)
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const heading = button.parentElement, body = table.tBodies[0];
    const words = [...body.rows].some(row => typeof key(row, column) === "string");
    const before = heading.getAttribute("aria-sort");
    const down = before === null ? !words : before === "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (x, y) => x > y ? 1 : x < y ? -1 : 0;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [a, b].map(row => key(row, column));
      return (words ? order(String(x), String(y)) : order(x, y)) * (down ? -1 : 1);
    });
    body.append(...rows);
  }));
