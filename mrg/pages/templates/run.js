// The charts of a run: values at the pointer or the arrow keys, and an enlarged copy.
const large = document.getElementById("large");
const short = (value) => (Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(4))));
function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
function watch(plot) {
  const svg = plot.querySelector("svg[data-chart]");
  const { box: [left, top, right, bottom], steps: [first, last], warned, lines } = JSON.parse(svg.dataset.chart);
  const known = [...new Set([...lines.flatMap(([, , points]) => points.map(([step]) => step)), ...warned])].sort((a, b) => a - b);
  const cursor = make("div", "cursor");
  const tip = make("div", "tip");
  let at = -1;
  tip.setAttribute("role", "status");
  plot.append(cursor, tip);
  const nearest = (list, step, key) => list.reduce((best, item) => (Math.abs(key(item) - step) < Math.abs(key(best) - step) ? item : best));
  function show(place) {
    at = Math.min(known.length - 1, Math.max(0, place));
    const share = left + ((known[at] - first) / (last - first)) * (right - left);
    Object.assign(cursor.style, { left: `${100 * share}%`, top: `${100 * top}%`, height: `${100 * (bottom - top)}%` });
    tip.replaceChildren(make("b", "", `step ${known[at]}`));
    for (const [label, color, points] of lines) {
      if (!points.length) continue;
      const [step, value] = nearest(points, known[at], (point) => point[0]);
      const row = make("div", "", `${label}: ${short(value)}${step === known[at] ? "" : ` (step ${step})`}`);
      row.style.borderLeft = `4px solid ${color}`;
      tip.append(row);
    }
    if (warned.includes(known[at])) tip.append(make("div", "alert", "warning: reward rises, other score falls"));
    const isRight = share > 0.55;
    Object.assign(tip.style, { left: isRight ? "" : `calc(${100 * share}% + .5rem)`, right: isRight ? `calc(${100 * (1 - share)}% + .5rem)` : "" });
    plot.classList.add("watched");
  }
  const hide = () => plot.classList.remove("watched");
  if (!known.length) return;
  plot.addEventListener("pointermove", (event) => {
    const { left: x, width } = svg.getBoundingClientRect();
    const share = ((event.clientX - x) / width - left) / (right - left);
    if (share < -0.02 || share > 1.02) hide();
    else show(known.indexOf(nearest(known, first + share * (last - first), (step) => step)));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20, Home: -known.length, End: known.length }[event.key];
    if (!by) return;
    show(at >= 0 ? at + by : by > 0 ? by - 1 : known.length + by);
    event.preventDefault();
  });
}
for (const figure of document.querySelectorAll(".charts figure")) {
  const plot = figure.querySelector(".plot");
  watch(plot);
  const button = figure.querySelector("button");
  button.hidden = false;
  button.addEventListener("click", () => {
    const copy = plot.cloneNode(true);
    copy.querySelectorAll(".cursor, .tip").forEach((part) => part.remove());
    copy.classList.remove("watched");
    large.querySelector("h2").textContent = figure.querySelector("h3").textContent;
    large.querySelector(".plot").replaceWith(copy);
    watch(copy);
    large.showModal();
    copy.focus();
  });
}
const seconds = Number(document.body.dataset.refresh);
const reload = () => (large.open ? setTimeout(reload, 1000) : location.reload());
if (seconds) setTimeout(reload, 1000 * seconds);
