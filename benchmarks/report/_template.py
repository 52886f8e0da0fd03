"""The frame of report.html: style, order of the parts, and the table's sorting."""

from string import Template

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 1200px;
    padding: 0 1rem; }
  h1 { font-size: 1.3rem; font-weight: 600; }
  h2 { font-size: 1.1rem; font-weight: 600; margin: 2.5rem 0 .5rem; }
  p { max-width: 75ch; margin: .3rem 0 1rem; color: #444; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; font-size: .9rem; }
  th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
  th:first-child, td:first-child { text-align: left; }
  th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
    padding: 0; cursor: pointer; }
  th button:hover, th button:focus-visible { text-decoration: underline; }
  th[aria-sort=ascending] button::after { content: " \\2191"; }
  th[aria-sort=descending] button::after { content: " \\2193"; }
  tr.baseline td { font-weight: 600; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; font-size: .9rem; }
  dt { font-weight: 600; }
  dd { margin: 0; overflow-wrap: anywhere; }
  @media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
</style>
<script>$plotlyjs</script>
</head>
<body>
<h1>$title</h1>

<h2>What is recalled, and what it costs</h2>
<p>Up is better; so is left in the first panel and right in the second. The dashed line is the baseline. Click a name in
the legend to hide it, double-click to see it alone. Vertical bars are as long as the best and the worst seed are
apart.</p>
$frontier

<h2>Results</h2>
<div class="wide"><table id="results">$table</table></div>
<p>$caption Click a heading to sort.</p>

<h2>Learning</h2>
<p>Loss at the best learning rate of each mixer, its first seed; of its model for the longest tests where there are
several.</p>
$curves
$grid

<h2>Settings</h2>
<dl>$settings</dl>

<h2>Machine, versions and commit</h2>
<dl>$environment</dl>

<script>
  const table = document.getElementById("results");
  const key = (row, column) => {
    const text = row.cells[column].dataset.key, number = Number(text);
    return Number.isNaN(number) ? text : number;
  };
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const heading = button.parentElement, down = heading.ariaSort !== "descending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      return (x > y ? 1 : x < y ? -1 : 0) * (down ? -1 : 1);
    });
    table.tBodies[0].append(...rows);
  }));
</script>
</body>
</html>
""")
