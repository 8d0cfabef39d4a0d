"use strict";
// The dial's two drawings, made anew at the width that there is. Both map scores to the slider's own way, thumb to thumb.

const THUMB = 8; // half of a slider's thumb: its middle travels from there to as far from the other end
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawing(figure, height, label) {
  const width = Math.max(280, figure.clientWidth);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, class: "chart" });
  figure.replaceChildren(svg);
  return { svg, width };
}

function axis(svg, x, low, high, bottom) {
  for (let step = 0; step <= 5; step++) {
    const value = low + ((high - low) * step) / 5;
    const anchor = step === 0 ? "start" : step === 5 ? "end" : "middle";
    const at = anchor === "middle" ? x(value) : anchor === "start" ? x(low) - THUMB : x(high) + THUMB;
    svg.append(shape("text", { x: at, y: bottom + 15, "text-anchor": anchor, class: "label" }, String(Number(value.toFixed(3)))));
  }
}

// Bars of documents by score, stacked by source; those left of the cut are faint.
function drawHistogram(figure, { thresholds, documents, colours, cut, own, label }) {
  const low = thresholds[0], high = thresholds[thresholds.length - 1], top = 20, height = 210, bottom = height - 20;
  const { svg, width } = drawing(figure, height, label);
  const x = (value) => THUMB + ((value - low) / (high - low)) * (width - 2 * THUMB);
  const bars = width > 600 ? 100 : 50;
  const stacks = documents.map(() => new Float64Array(bars));
  thresholds.forEach((start, bin) => {
    const bar = Math.min(bars - 1, Math.floor(((start - low) / (high - low)) * bars + 1e-6));
    documents.forEach((counts, source) => { stacks[source][bar] += counts[bin]; });
  });
  let most = 1;
  for (let bar = 0; bar < bars; bar++) most = Math.max(most, stacks.reduce((sum, counts) => sum + counts[bar], 0));
  const wide = (width - 2 * THUMB) / bars;
  for (let bar = 0; bar < bars; bar++) {
    const start = low + ((high - low) * bar) / bars;
    let base = bottom;
    stacks.forEach((counts, source) => {
      const tall = (counts[bar] / most) * (bottom - top);
      if (tall <= 0) return;
      base -= tall;
      const dropped = start + ((high - low) / bars) * 0.5 < cut ? " dropped" : "";
      svg.append(shape("rect", { class: `bar ${colours[source]}${dropped}`, x: x(start) + 0.5, y: base, width: Math.max(1, wide - 1), height: tall }));
    });
  }
  svg.append(shape("line", { class: "axis", x1: x(low), y1: bottom, x2: x(high), y2: bottom }));
  axis(svg, x, low, high, bottom);
  if (own !== null) {
    svg.append(shape("line", { class: "own", x1: x(own), y1: 4, x2: x(own), y2: bottom }));
    const right = x(own) < width / 2;
    svg.append(shape("text", { x: x(own) + (right ? 5 : -5), y: 13, "text-anchor": right ? "start" : "end", class: "label" }, "the stage’s own"));
  }
  svg.append(shape("line", { class: "cut", x1: x(cut), y1: top - 4, x2: x(cut), y2: height }));
}

// Lines over the threshold, shares from 0 to 1, each with its interval where it has one.
function drawCurves(figure, { thresholds, lines, cut, label }) {
  const low = thresholds[0], high = thresholds[thresholds.length - 1], top = 8, height = 230, bottom = height - 20;
  const { svg, width } = drawing(figure, height, label);
  const x = (value) => THUMB + ((value - low) / (high - low)) * (width - 2 * THUMB);
  const y = (share) => bottom - share * (bottom - top);
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(shape("line", { class: "grid", x1: x(low), y1: y(share), x2: x(high), y2: y(share) }));
    if (share > 0) svg.append(shape("text", { x: x(high) - 2, y: y(share) + (share === 1 ? 13 : -4), "text-anchor": "end", class: "label" }, `${100 * share}%`));
  }
  for (const { colour, points } of lines) {
    const told = points.map((point, step) => [thresholds[step], point]).filter(([, point]) => point !== null);
    if (told.length && told[0][1].length === 3) {
      const up = told.map(([at, [, , most]]) => `${x(at)},${y(most)}`), down = told.map(([at, [, least]]) => `${x(at)},${y(least)}`).reverse();
      svg.append(shape("polygon", { class: `ribbon ${colour}`, points: [...up, ...down].join(" ") }));
    }
    svg.append(shape("polyline", { class: `line ${colour}`, points: told.map(([at, [value]]) => `${x(at)},${y(value)}`).join(" ") }));
  }
  axis(svg, x, low, high, bottom);
  svg.append(shape("line", { class: "cut", x1: x(cut), y1: top - 4, x2: x(cut), y2: bottom }));
}
