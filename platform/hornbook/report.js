"use strict";
// Shows a chart's values under the pointer. The page is whole without it: every chart has a table beside it.
for (const chart of document.querySelectorAll("svg[data-hover]")) {
  const { unit, lines } = JSON.parse(chart.dataset.hover);
  const make = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const rule = make("line");
  const box = document.createElement("div");
  rule.setAttribute("class", "rule");
  rule.setAttribute("y1", chart.dataset.top);
  rule.setAttribute("y2", chart.dataset.bottom);
  box.className = "tip";
  box.hidden = true;
  chart.parentElement.append(box);
  const hide = () => { rule.remove(); box.hidden = true; };
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("pointermove", (event) => {
    const scale = chart.viewBox.baseVal.width / chart.getBoundingClientRect().width;
    const x = event.offsetX * scale;
    const nearest = lines.map(({ name, colour, points }) => ({
      name, colour, point: points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)),
    }));
    const at = nearest.reduce((a, b) => (Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a)).point;
    rule.setAttribute("x1", at[0]);
    rule.setAttribute("x2", at[0]);
    chart.append(rule);
    box.replaceChildren(`${unit} ${at[2]}`, ...nearest.map(({ name, colour, point }) => {
      const row = document.createElement("span");
      const key = document.createElement("i");
      key.className = `key ${colour}`;
      row.append(key, `${name} ${point[3]}`);
      return row;
    }));
    box.hidden = false;
    const left = at[0] / scale + chart.getBoundingClientRect().left - chart.parentElement.getBoundingClientRect().left;
    const room = chart.parentElement.clientWidth - box.offsetWidth;
    box.style.left = `${Math.max(0, left + 12 <= room ? left + 12 : left - box.offsetWidth - 12)}px`;
    box.style.top = `${chart.getBoundingClientRect().top - chart.parentElement.getBoundingClientRect().top + 40}px`;
  });
}
