"use strict";
// The dial: figures are sums from the threshold on, so that moving it asks nobody; texts and the recipe are asked for when it rests.

const COLOURS = 7; // sources with a colour of their own; the rest are grey
const REST = 200; // milliseconds without movement
const FOLD = 500; // characters of a sample that are shown at first
const find = (id) => document.getElementById(id);
const say = (id, text) => { find(id).textContent = text; };
const whole = (count) => count.toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%`;
const trimmed = (value) => String(Number(value.toFixed(4)));

let figures, rows, totals, step = 0, waiting = 0, asked = 0, chosenPlaces = null;

function about(count) {
  for (const [limit, scale, unit] of [[1e12, 1e12, "T"], [1e9, 1e9, "B"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]]) {
    if (count >= limit) {
      const scaled = count / scale;
      return scaled.toFixed(Math.max(0, 3 - String(Math.trunc(scaled)).length)) + unit;
    }
  }
  return whole(Math.round(count));
}

function make(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(name, options) {
  let answer;
  try {
    answer = await fetch(`api/${name}`, options);
  } catch {
    throw new Error("The dial does not answer any more: start it again in its terminal.");
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.cure ? `${value.error} (cure: ${value.cure})` : value.error);
  return value;
}

function trouble(error) {
  say("problem", error ? error.message : "");
  find("problem").hidden = !error;
}

// Sums of what lies from each threshold on.
function fromOn(counts) {
  const sums = new Float64Array(counts.length);
  for (let bin = counts.length - 1, sum = 0; bin >= 0; bin--) sums[bin] = sum += counts[bin];
  return sums;
}

function begin(value) {
  figures = value;
  rows = figures.sources.map((source, place) => {
    const documents = fromOn(figures.documents[place]);
    const tokens = fromOn(figures.bytes[place]).map((size) => size / source.bytes_per_token);
    return { name: source.name, place, documents, tokens, source };
  }).sort((a, b) => b.tokens[0] - a.tokens[0] || (a.name < b.name ? -1 : 1));
  rows.forEach((row, rank) => { row.colour = rank < COLOURS ? `c${rank}` : "c7"; });
  const sum = (key) => figures.thresholds.map((_, bin) => rows.reduce((total, row) => total + row[key][bin], 0));
  totals = { documents: sum("documents"), tokens: sum("tokens") };

  const own = figures.chosen;
  document.title = `hornbook dial: ${figures.stage}`;
  say("title", figures.stage);
  say("lead", `${whole(totals.documents[0])} scored documents${figures.corpus ? ` of ${figures.corpus}` : ""}, ${rows.length} ${rows.length === 1 ? "source" : "sources"}. `
    + (own === null ? "The stage chose no threshold." : `The stage chose a threshold of ${trimmed(own)}.`)
    + (figures.unscored ? ` ${whole(figures.unscored)} documents have no score and are never kept.` : ""));
  const slider = find("slider"), number = find("number");
  slider.max = figures.thresholds.length - 1;
  number.min = figures.thresholds[0];
  number.max = figures.thresholds[figures.thresholds.length - 1];
  if (own !== null) {
    find("own").hidden = false;
    say("own", `the stage’s own, ${trimmed(own)}`);
    find("own").addEventListener("click", () => move(nearest(own)));
  }
  slider.addEventListener("input", () => move(slider.valueAsNumber));
  number.addEventListener("change", () => { if (Number.isFinite(number.valueAsNumber)) move(nearest(number.valueAsNumber)); else show(); });
  find("write").addEventListener("click", write);
  legend(find("legend"), rows.slice(0, COLOURS).map((row) => [row.name, row.colour]).concat(rows.length > COLOURS ? [["others", "c7"]] : []));
  explain();
  const wanted = Number(location.hash.slice(1));
  move(nearest(location.hash && Number.isFinite(wanted) ? wanted : own !== null ? own : figures.thresholds[figures.thresholds.length >> 1]));
  let before = 0;
  new ResizeObserver(() => {
    if (find("histogram").clientWidth !== before) { before = find("histogram").clientWidth; draw(); }
  }).observe(find("histogram"));
}

function legend(list, entries) {
  list.replaceChildren(...entries.map(([name, colour]) => {
    const entry = make("li");
    entry.append(make("i", `key ${colour}`), name);
    return entry;
  }));
}

function explain() {
  const measured = rows.filter((row) => row.source.error !== null);
  const ratios = measured.map((row) => row.source.bytes_per_token);
  const range = ratios.length ? `${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}` : "4";
  say("estimate", figures.tokenizer
    ? `Tokens are estimates: bytes divided by bytes per token (${range} by source), as the tokenizer of ${figures.tokenizer} cuts ${whole(measured.reduce((sum, row) => sum + row.source.measured, 0))} sampled documents.`
    : "Tokens are guesses: bytes divided by 4, since there is no tokenizer here.");
  const told = figures.held_out;
  say("method", told
    ? `On ${whole(told.grades)} held-out grades, of which ${whole(told.good)} are good. ${told.method}. An interval holds for one threshold; who picks the best of many picks some luck, too.`
    : "Precision and recall are unknown: no scorer with held-out grades made these scores.");
  legend(find("curves-legend"), [["documents kept", "ink"], ...(told ? [["precision", "c0"], ["recall", "c1"]] : [])]);
}

function nearest(value) {
  let best = 0;
  figures.thresholds.forEach((at, place) => { if (Math.abs(at - value) < Math.abs(figures.thresholds[best] - value)) best = place; });
  return best;
}

function move(to) {
  step = to;
  show();
  draw();
  say("written", "");
  clearTimeout(waiting);
  find("write").disabled = true; // until the change for this threshold is on the page
  waiting = setTimeout(settle, REST);
}

function show() {
  const at = figures.thresholds[step], kept = totals.documents[step], all = totals.documents[0];
  find("slider").value = step;
  find("slider").setAttribute("aria-valuetext", trimmed(at));
  find("number").value = trimmed(at);
  const share = all ? kept / all : 0;
  say("documents", whole(kept));
  say("documents-note", `${percent(share)} of ${whole(all)}`);
  say("tokens", `≈ ${about(totals.tokens[step])}`);
  say("tokens-note", `${percent(totals.tokens[0] ? totals.tokens[step] / totals.tokens[0] : 0)} of ${about(totals.tokens[0])}`);
  say("short", `${whole(kept)} documents, ${percent(share)}`);
  const told = figures.held_out;
  rate("precision", told && told.precision[step], told && `${whole(told.kept[step])} held-out grades are at or above it`);
  rate("recall", told && told.recall[step], told && `${whole(told.good)} held-out grades are good`);
  showSources();
}

function rate(id, value, beside) {
  say(id, value ? percent(value[0]) : "–");
  say(`${id}-note`, value ? `${percent(value[1])} to ${percent(value[2])}; ${beside}` : figures.held_out ? beside : "no held-out grades");
}

function showSources() {
  const gone = [], few = [], entries = [];
  for (const row of rows) {
    const all = row.documents[0], kept = row.documents[step], share = all ? kept / all : 0;
    const flag = !all || share >= figures.few ? "" : kept ? "below a tenth" : "vanishes";
    if (flag) (kept ? few : gone).push(row.name);
    const line = make("tr"), name = make("th"), bar = make("td", "share"), track = make("div", "track"), fill = make("span", `fill ${row.colour}${kept ? "" : " none"}`);
    name.scope = "row";
    name.append(make("i", `key ${row.colour}`), row.name);
    if (flag) name.append(make("span", "flag", flag));
    bar.setAttribute("aria-hidden", "true");
    fill.style.width = `${100 * share}%`;
    track.append(fill);
    bar.append(track);
    const documents = make("td", "n", whole(kept)), tokens = make("td", "n", about(row.tokens[step]));
    documents.append(make("span", "soft step", `of ${whole(all)}`));
    tokens.append(make("span", "soft step", `of ${about(row.tokens[0])}`));
    line.append(name, bar, make("td", "n", percent(share)), documents, tokens);
    entries.push(line);
  }
  find("sources").tBodies[0].replaceChildren(...entries);
  const names = (list) => list.slice(0, 6).join(", ") + (list.length > 6 ? ` and ${list.length - 6} more` : "");
  const lines = [];
  if (gone.length) lines.push(`${gone.length === 1 ? "A source vanishes" : `${gone.length} sources vanish`}: ${names(gone)}.`);
  if (few.length) lines.push(`${few.length === 1 ? "A source keeps" : `${few.length} sources keep`} less than a tenth: ${names(few)}.`);
  find("flags").hidden = !lines.length;
  find("flags").replaceChildren(...lines.map((text) => make("p", "", text)));
}

function draw() {
  const cut = figures.thresholds[step];
  const coloured = rows.slice(0, COLOURS).map((row) => figures.documents[row.place]);
  if (rows.length > COLOURS) coloured.push(figures.thresholds.map((_, bin) => rows.slice(COLOURS).reduce((sum, row) => sum + figures.documents[row.place][bin], 0)));
  drawHistogram(find("histogram"), {
    thresholds: figures.thresholds, documents: coloured, colours: coloured.map((_, rank) => (rank < COLOURS ? `c${rank}` : "c7")),
    cut, own: figures.chosen, label: `Documents by score and source; the threshold stands at ${trimmed(cut)}`,
  });
  const told = figures.held_out, all = totals.documents[0] || 1;
  drawCurves(find("curves"), {
    thresholds: figures.thresholds, cut, label: "Share of documents kept, precision and recall by threshold",
    lines: [{ colour: "ink", points: [...totals.documents].map((count) => [count / all]) },
      ...(told ? [{ colour: "c0", points: told.precision }, { colour: "c1", points: told.recall }] : [])],
  });
}

async function settle() {
  const at = figures.thresholds[step], turn = ++asked;
  history.replaceState(null, "", `#${trimmed(at)}`);
  say("spoken", `At ${trimmed(at)}, ${whole(totals.documents[step])} of ${whole(totals.documents[0])} documents are kept.`);
  try {
    const places = chosenPlaces === null ? "" : `&places=${encodeURIComponent(chosenPlaces.join(","))}`;
    const [samples, change] = await Promise.all([ask(`samples?at=${at}`), ask(`change?at=${at}${places}`)]);
    if (turn !== asked) return; // the dial has moved on
    showSamples("above", samples.above, "Nothing has so high a score.");
    showSamples("below", samples.below, "Nothing has a lower score.");
    showChange(change);
    trouble(null);
  } catch (error) {
    if (turn === asked) trouble(error);
  }
}

function showSamples(id, samples, none) {
  find(id).replaceChildren(...(samples.length ? samples.map(sampleEntry) : [make("li", "soft", none)]));
}

function sampleEntry({ source, score, key, text, characters }) {
  const entry = make("li"), head = make("p", "note"), body = make("p", "text", text.slice(0, FOLD));
  head.append(`${source} · score ${score.toFixed(4)} · ${whole(characters)} characters · `, make("code", "", key.slice(0, 12)));
  head.title = `hornbook trace ${key}`;
  body.dir = "auto";
  entry.append(head, body);
  if (text.length > FOLD) {
    const more = make("button", "link", "show more");
    more.type = "button";
    more.addEventListener("click", () => {
      const short = body.textContent.length <= FOLD;
      body.textContent = short ? text + (characters > text.length ? " […]" : "") : text.slice(0, FOLD);
      more.textContent = short ? "show less" : "show more";
    });
    body.textContent = text.slice(0, FOLD);
    entry.append(more);
  }
  return entry;
}

function showChange(change) {
  const list = find("places"), diff = find("diff"), button = find("write");
  const choose = () => {
    chosenPlaces = [...list.querySelectorAll("input:checked")].map((box) => box.value);
    settle();
  };
  list.replaceChildren(...change.places.map((place) => {
    const entry = make("li"), label = make("label"), box = make("input"), text = make("span");
    box.type = "checkbox";
    box.value = place.name;
    box.checked = place.chosen;
    box.addEventListener("change", choose);
    text.append(make("code", "", place.name), make("span", "soft", ` now ${place.now === null ? "the stage’s own" : place.now}`
      + (place.sources.length ? `; for ${place.sources.join(", ")} only` : "")));
    label.append(box, text);
    entry.append(label);
    return entry;
  }));
  diff.replaceChildren(...change.diff.map((line) => make("span", line.startsWith("+") ? "add" : line.startsWith("-") ? "remove" : "", line)));
  diff.hidden = !change.diff.length;
  button.textContent = `Write ${change.value}`;
  button.disabled = !change.diff.length;
  button.hidden = !change.places.length;
  const none = figures.recipe ? `Nothing in ${figures.recipe} takes a threshold of ${figures.stage}: ` : "No recipe is open: start the dial with --recipe FILE, or ";
  const chosen = change.places.some((place) => place.chosen);
  say("recipe-note", change.problem || (change.add ? `${none}${change.add}.` : change.diff.length ? `${figures.recipe} would change like this:`
    : chosen ? `${figures.recipe} has this threshold already.` : `Choose where in ${figures.recipe} it goes.`));
}

async function write() {
  const note = find("written"), at = figures.thresholds[step];
  find("write").disabled = true;
  const places = [...find("places").querySelectorAll("input:checked")].map((box) => box.value);
  try {
    const { path } = await ask("write", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ at, places }),
    });
    note.className = "";
    note.textContent = `Written into ${path}. The next run makes anew what stands behind it, and scores nothing again.`;
    settle();
  } catch (error) {
    note.className = "failed";
    note.textContent = error.message;
    find("write").disabled = false;
  }
}

ask("figures").then(begin).catch(trouble);
