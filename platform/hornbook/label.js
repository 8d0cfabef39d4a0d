"use strict";
// The page of `hornbook label`. Texts come from anywhere and are only ever set as textContent.
const WORDS = ["nothing", "very little", "a little", "some", "much", "very much"];
const QUESTION = "How much would a student learn from this?";
const OWN_QUESTION = "Grade it from 0, the worst, to 5, the best.";
const CODE = ["code", "python", "code-textbooks", "exercises", "function-calls"];
const UNREAD_MS = 250; // a key this soon after a document came was meant for the one before

const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
let about, state, shown; // what never changes, how far we are, the document on the page
let whole = null; // its whole text, once asked for
let busy = true;
let cameAt = 0;

async function ask(name, body) {
  const sent = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(`api/${name}`, sent);
  } catch {
    throw { error: "The command has ended, or the connection to it.", cure: "Start `hornbook label` again; what was graded is saved." };
  }
  const value = await answer.json();
  if (!answer.ok) throw value;
  return value;
}

// Does one thing at a time; what goes wrong is shown and nothing moves on.
async function act(todo) {
  if (busy) return;
  busy = true;
  try {
    await todo();
    at("error").hidden = true;
  } catch (error) {
    at("error-what").textContent = error.error || String(error);
    at("error-cure").textContent = error.cure || "";
    at("error").hidden = false;
    at("error").scrollIntoView({ block: "nearest" });
  } finally {
    busy = false;
  }
}

async function show(place) {
  shown = await ask(`document?place=${place}`);
  whole = null;
  cameAt = performance.now();
  draw();
  window.scrollTo(0, 0);
}

function draw() {
  const done = !shown;
  at("done").hidden = !done;
  at("grading").hidden = at("controls").hidden = done;
  at("count").textContent = `${number.format(state.graded)} of ${number.format(state.total)}`;
  at("progress").max = state.total;
  at("progress").value = state.graded;
  at("undo").disabled = state.last === null;
  if (done) return drawDone();
  const text = whole || shown;
  at("text").textContent = text.text;
  at("text").className = CODE.includes(shown.kind) ? "" : "prose";
  at("place").textContent = `Document ${number.format(shown.place + 1)}${shown.skipped ? ", skipped" : ""}`;
  const length = [...text.text].length; // in the code points that the server counts, too
  at("shown").textContent = `${length < shown.characters ? `${number.format(length)} of ` : ""}${number.format(shown.characters)} characters`;
  at("whole").textContent = whole ? "What the judge read" : "Whole text";
  at("whole").append(" ", key("F"));
  at("whole").setAttribute("aria-pressed", String(Boolean(whole)));
  at("back").disabled = shown.place === 0;
  at("forward").disabled = shown.place + 1 >= state.total;
  for (const button of at("grades").children) {
    button.setAttribute("aria-pressed", String(shown.grade === Number(button.dataset.grade)));
  }
}

function drawDone() {
  const skipped = state.skipped.length;
  at("done-what").textContent = skipped ? `${number.format(state.graded)} graded, ${number.format(skipped)} skipped` : `All ${number.format(state.total)} are graded`;
  at("done-skipped").hidden = skipped === 0;
  at("skipped").textContent = skipped === 1 ? "Look at the skipped one again" : `Look at the ${number.format(skipped)} skipped ones again`;
  const documents = about.inputs.length === 1 ? about.inputs[0] : `[${about.inputs.join(", ")}]`;
  at("recipe").textContent = `people:\n  kind: labels\n  inputs: {documents: ${documents}, judge: ${about.stage}}\n  file: ${about.file}`;
  at("both").textContent = `annotations: [${about.stage}, people]`;
}

function key(name) {
  const shownKey = document.createElement("kbd");
  shownKey.textContent = name;
  return shownKey;
}

function tell(...pieces) {
  at("last").replaceChildren(...pieces.map(([text, strong]) => {
    const piece = document.createElement(strong ? "strong" : "span");
    piece.textContent = text;
    return piece;
  }));
}

async function goTo(place) {
  if (place === null) {
    shown = null;
    draw();
  } else {
    await show(place);
  }
}

async function grade(value) {
  if (performance.now() - cameAt < UNREAD_MS) return;
  const { place } = shown;
  const again = shown.skipped;
  state = await ask("grade", { place, grade: value });
  if (value === null) {
    tell([`Document ${place + 1} skipped.`]);
  } else {
    const judge = state.judge ? `, ${state.judge.judge} ${state.judge.score.toFixed(1)}` : "";
    const none = about.show_judge && !state.judge ? ", the judge gave none" : "";
    tell([`Document ${place + 1}: you `], [String(value), true], [`${judge}${none}; it is from ${state.source}.`]);
  }
  const nextSkipped = again ? state.skipped.find((other) => other !== place) : undefined;
  await goTo(state.next ?? (value === null ? null : nextSkipped ?? null));
}

async function undo() {
  if (state.last === null) return;
  state = await ask("undo", {});
  tell([`Document ${state.next + 1}: the grade is taken back.`]);
  await show(state.next);
}

async function toggleWhole() {
  whole = whole ? null : await ask(`whole?place=${shown.place}`);
  draw();
}

function toggleHelp() {
  at("about").hidden = !at("about").hidden;
  at("help").setAttribute("aria-expanded", String(!at("about").hidden));
  if (!at("about").hidden) window.scrollTo(0, 0);
}

function move(step) {
  const place = shown ? shown.place + step : state.total - 1;
  if (place >= 0 && place < state.total) return show(place);
}

const KEYS = {
  s: () => shown && act(() => grade(null)),
  u: () => act(undo),
  backspace: () => act(undo),
  arrowleft: () => act(async () => move(-1)),
  arrowright: () => shown && act(async () => move(1)),
  f: () => shown && act(toggleWhole),
  "?": toggleHelp,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const todo = /^[0-5]$/.test(event.key) ? () => shown && act(() => grade(Number(event.key))) : KEYS[event.key.toLowerCase()];
  if (!todo) return;
  event.preventDefault();
  todo();
});

function drawAbout() {
  document.title = `Grading ${about.stage}`;
  at("grader").textContent = about.grader;
  at("grader").title = about.grader;
  at("file").textContent = about.file;
  at("question").textContent = about.asked.shipped ? QUESTION : OWN_QUESTION;
  at("remarks").hidden = about.remarks.length === 0;
  at("remarks").replaceChildren(...about.remarks.map((remark) => {
    const line = document.createElement("p");
    line.textContent = `${remark}.`;
    return line;
  }));
  at("grades").replaceChildren(...WORDS.map((word, value) => {
    const button = document.createElement("button");
    const digit = document.createElement("b");
    const meaning = document.createElement("span");
    digit.textContent = String(value);
    meaning.textContent = about.asked.shipped ? word : ["worst", "", "", "", "", "best"][value];
    button.type = "button";
    button.dataset.grade = String(value);
    button.append(digit, meaning);
    button.addEventListener("click", () => act(() => grade(value)));
    return button;
  }));
  at("voices").replaceChildren(...about.asked.voices.flatMap((voice) => {
    const head = document.createElement("p");
    const said = document.createElement("pre");
    head.className = "note";
    head.textContent = `${voice.judge}; answers: ${voice.choices.join(", ")}`;
    said.textContent = voice.messages.map((message) => `${message.role}: ${message.content}`).join("\n\n");
    return [head, said];
  }));
  if (!about.asked.shipped && state.last === null) toggleHelp(); // what to grade by is only said there
}

at("help").addEventListener("click", toggleHelp);
at("whole").addEventListener("click", () => act(toggleWhole));
at("back").addEventListener("click", () => act(async () => move(-1)));
at("forward").addEventListener("click", () => act(async () => move(1)));
at("skip").addEventListener("click", () => act(() => grade(null)));
at("undo").addEventListener("click", () => act(undo));
at("skipped").addEventListener("click", () => act(() => show(state.skipped[0])));

busy = false;
act(async () => {
  about = await ask("about");
  state = await ask("state");
  drawAbout();
  await goTo(state.next);
});
