// The review page: which pair is shown, what an answer does, and the tools to look at a pair.

import { COLOURS, DASHES, boxOf, colourOf, dashOf, draw, placement } from "./drawing.js";

let key = location.hash.slice(1);
const BLINK_MS = 700; // well below three flashes per second
const DEAD_MS = 150; // a key that is pressed twice must not answer the next pair
const SLICES_KEPT = 80;
const VIEWS = ["side", "blink", "both"];
const VIEW_TEXT = { side: "side by side", blink: "in turn", both: "both on one image" };
const SIDES = ["Left", "Right"];
const SAID = { left: "left is better", right: "right is better", equal: "equally good", unusable: "both unusable", skip: "skipped" };
const still = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 700px)");

const find = (id) => document.getElementById(id);
const canvases = [...document.querySelectorAll("figure canvas")];
const captions = [...document.querySelectorAll("figcaption")];

let reviewer = "";
let waiting = []; // pairs: the first is on the page, the next is loaded in advance
let loaded = new Map(); // by showing: {about, slices}
let current = null;
let progress = null;
let busy = false;
let turn = 0; // number of answers and undos that were sent
let shownAt = 0;
let index = 0;
let blinkSide = 0;
let timer = 0;
let view = narrow.matches ? "blink" : "side";
let paused = false;
let look = { channel: 0, difference: false, outlines: true, zoom: 1, x: 0, y: 0, windows: [] };
let windowsOf = null; // windows that the reviewer has set, in intensities, kept from pair to pair
let dragWindow = false;

// ---- the server -----------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { "X-Review-Key": key, ...(options.headers ?? {}) } });
  if (response.ok) return response;
  let text = `${response.status} ${response.statusText}`;
  try {
    text = (await response.json()).error;
  } catch {
    // The answer of another server has no JSON; its status says enough.
  }
  throw Object.assign(new Error(text), { status: response.status });
}

const named = (values) => new URLSearchParams({ reviewer, ...values }).toString();
const send = (path, content) => ask(path, { method: "POST", body: JSON.stringify({ reviewer, ...content }) });

/** Send until the server has answered, also after a new start: an answer that is sent twice counts once. */
async function surely(path, content) {
  for (;;) {
    try {
      const found = await (await send(path, content)).json();
      problem("");
      return found;
    } catch (error) {
      const otherKey = error.status === 403;
      if (error.status && !otherKey) throw error;
      const why = otherKey
        ? "the server was started again. Put the address that it printed into the address bar of this page."
        : "the server does not answer. This page goes on trying; keep it open.";
      problem(`Not stored yet: ${why}`);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function refill() {
  const asked = turn;
  const found = await (await ask(`/api/waiting?${named({})}`, { method: "POST" })).json();
  if (asked !== turn) return; // an answer was sent meanwhile, so the reply is old
  waiting = found.waiting;
  setProgress(found.progress);
  for (const showing of loaded.keys()) if (!waiting.some((one) => one.showing === showing)) loaded.delete(showing);
}

async function load(one) {
  if (!loaded.has(one.showing)) {
    const about = await (await ask(`/api/pair?${named({ showing: one.showing })}`)).json();
    loaded.set(one.showing, { ...one, about, slices: new Map() });
  }
  const pair = loaded.get(one.showing);
  await slice(pair, pair.about.first);
  return pair;
}

/** A slice of a pair: image, masks left and right, and the outlines that were traced so far. */
async function slice(pair, at) {
  if (!pair.slices.has(at)) {
    const wanted = ask(`/api/slice?${named({ showing: pair.showing, index: at })}`).then(async (response) => {
      const bytes = await response.arrayBuffer();
      const voxels = pair.about.shape[1] * pair.about.shape[2];
      const numbers = pair.about.channels.length * voxels;
      return {
        image: new Uint16Array(bytes, 0, numbers),
        masks: [0, 1].map((side) => new Uint8Array(bytes, 2 * numbers + side * voxels, voxels)),
        lines: new Map(),
      };
    });
    wanted.catch(() => pair.slices.delete(at));
    pair.slices.set(at, wanted);
    const far = [...pair.slices.keys()].sort((a, b) => Math.abs(b - at) - Math.abs(a - at));
    for (const one of far.slice(0, Math.max(0, far.length - SLICES_KEPT))) pair.slices.delete(one);
  }
  return pair.slices.get(at);
}

// ---- which pair is on the page ----------------------------------------------------------------------------------

async function next() {
  if (!waiting.length) await refill();
  if (!waiting.length) return finish();
  const pair = await load(waiting[0]);
  current = pair;
  index = pair.about.first;
  blinkSide = 0;
  find("done").hidden = true;
  if (find("review").hidden) {
    find("review").hidden = false;
    find("review").focus({ preventScroll: true });
  }
  await prepareLook();
  describe();
  await render();
  shownAt = performance.now();
  document.body.dataset.showing = pair.showing;
  setTimeout(() => ahead(pair), 0);
}

/** Load what the reviewer is likely to see next: neighbouring slices, and the next pair. */
async function ahead(pair) {
  try {
    await refill();
    if (waiting.length > 1) await load(waiting[1]);
    for (const step of [1, -1, 2, -2]) {
      const at = pair.about.first + step;
      if (current === pair && at >= 0 && at < pair.about.shape[0]) await slice(pair, at);
    }
  } catch (error) {
    // The same request is made again, and its failure told, when the reviewer needs its answer.
    console.warn(error);
  }
}

function finish() {
  current = null;
  delete document.body.dataset.showing;
  find("review").hidden = true;
  find("done").hidden = false;
  find("done").focus();
  tell("No pair is left.");
}

async function answer(given) {
  if (busy || !current || performance.now() - shownAt < DEAD_MS) return;
  await working(async () => {
    const { showing } = current;
    const seconds = (performance.now() - shownAt) / 1000;
    const found = await surely("/api/answer", { showing, answer: given, seconds });
    setProgress(found.progress);
    waiting = waiting.filter((one) => one.showing !== showing);
    const kept = found.recorded === given ? "Stored" : "Another page has answered this pair before";
    await next();
    tell(`${kept}: ${SAID[found.recorded]}. ${progress.answered} answered.`);
  });
}

async function undo() {
  if (busy || !progress?.last) return;
  await working(async () => {
    setProgress((await surely("/api/undo", { showing: progress.last })).progress);
    waiting = [];
    await next();
    tell(`Undone: the last pair is shown again. ${progress.answered} answered.`);
  });
}

async function working(act) {
  busy = true;
  turn++;
  try {
    await act();
  } catch (error) {
    problem(error.message);
    if (error.status === 409) {
      waiting = [];
      await next().catch((again) => problem(again.message));
    }
  }
  busy = false;
}

function setProgress(found) {
  progress = found;
  const skipped = found.skipped ? `, ${found.skipped} skipped` : "";
  find("progress").textContent = `${reviewer}: ${found.answered} answered${skipped}. ${found.worth}`;
  for (const button of document.querySelectorAll('[data-do="undo"]')) button.disabled = !found.last;
}

function tell(text) {
  find("status").textContent = text;
}

function problem(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

// ---- the look of a pair --------------------------------------------------------------------------------------

/** Windows of the reviewer in the numbers of this pair, and a zoom at which small masks can be seen. */
async function prepareLook() {
  const { about } = current;
  if (windowsOf?.length !== about.channels.length) windowsOf = null;
  look.channel = Math.min(look.channel, about.channels.length - 1);
  setWindows(windowsOf ?? about.window);
  fit();
  const box = boxOf(await slice(current, index), about.shape.slice(1));
  if (box && (box[2] - box[0]) / about.shape[1] < 0.25 && (box[3] - box[1]) / about.shape[2] < 0.25) zoomTo(box);
}

function setWindows(windows) {
  look.windows = windows.map(([low, high], i) => {
    const [least, most] = current.about.scale[i];
    const factor = 65535 / Math.max(most - least, 1e-12);
    return [(low - least) * factor, (high - least) * factor];
  });
}

function fit() {
  const [rows, columns] = current.about.shape.slice(1);
  Object.assign(look, { zoom: 1, x: columns / 2, y: rows / 2 });
}

/** Show a box in the middle, with a margin of its size. */
function zoomTo([top, left, bottom, right]) {
  const [rows, columns] = current.about.shape.slice(1);
  const zoom = Math.min(rows / (3 * (bottom - top)), columns / (3 * (right - left)));
  Object.assign(look, { zoom: Math.max(1, Math.min(zoom, 8)), x: (left + right) / 2, y: (top + bottom) / 2 });
}

function zoomBy(factor, canvas, event) {
  const before = placement(canvas ?? canvases[0], current.about, look);
  const zoom = Math.max(0.5, Math.min(look.zoom * factor, 40));
  if (event) {
    const box = canvas.getBoundingClientRect();
    const [fromX, fromY] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    const scale = (before.scale * zoom) / look.zoom;
    look.x += fromX / before.scale - fromX / scale;
    look.y += (fromY / before.scale - fromY / scale) / current.about.aspect;
  }
  look.zoom = zoom;
  render();
}

function moveBy(x, y) {
  const at = placement(canvases[0], current.about, look);
  look.x -= x / at.scale;
  look.y -= y / (at.scale * current.about.aspect);
  render();
}

/** Change the window: `level` and `width` are shares of its present width. */
function windowBy(level, width) {
  const channels = current.about.rgb ? [0, 1, 2] : [look.channel];
  windowsOf = windowsOf ?? current.about.window.map((one) => [...one]);
  for (const channel of channels) {
    const [low, high] = windowsOf[channel];
    const [middle, wide] = [(low + high) / 2 + level * (high - low), (high - low) * Math.exp(width)];
    windowsOf[channel] = [middle - wide / 2, middle + wide / 2];
  }
  setWindows(windowsOf);
  render();
}

function toSlice(at) {
  const most = current.about.shape[0] - 1;
  index = Math.max(0, Math.min(at, most));
  render();
}

/** The next slice in a direction on which the masks differ. */
function toDifference(step) {
  for (let at = index + step; at >= 0 && at < current.about.shape[0]; at += step) {
    if (current.about.differ[at]) return toSlice(at);
  }
  tell("The masks differ on no further slice in this direction.");
}

function describe() {
  const { about } = current;
  const again = current.again ? "Shown again. " : "";
  const display = about.display ? ` Display: ${about.display}.` : "";
  find("about").textContent = `${again}Case ${current.case}.${display}`;
  find("slices").hidden = about.shape[0] === 1;
  find("slice").max = about.shape[0];
  document.querySelector('[data-do="channel"]').hidden = about.rgb || about.channels.length === 1;
  find("channel-text").textContent = about.channels[look.channel];
  legend();
}

function legend() {
  const { classes } = current.about;
  const both = view === "both";
  const rows = [];
  if (both && classes.length > 2) SIDES.forEach((side, i) => rows.push([side, "#fff", DASHES[i]]));
  if (both && classes.length === 2) SIDES.forEach((side, i) => rows.push([`${side}: ${classes[1]}`, COLOURS[i], DASHES[i]]));
  else classes.forEach((name, label) => label && rows.push([name, colourOf(label), both ? [] : dashOf(label)]));
  find("legend").replaceChildren(
    ...rows.map(([name, colour, dash]) => {
      const row = document.createElement("li");
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      const set = { x1: 0, x2: 36, y1: 7, y2: 7, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash.join(" ") };
      for (const [attribute, value] of Object.entries(set)) line.setAttribute(attribute, value);
      svg.setAttribute("viewBox", "0 0 36 14");
      svg.setAttribute("aria-hidden", "true");
      svg.append(line);
      row.append(svg, document.createTextNode(name));
      return row;
    }),
  );
}

function bars() {
  const canvas = find("bars");
  const { differ } = current.about;
  canvas.width = Math.max(1, canvas.clientWidth - 16);
  canvas.height = 12;
  const context = canvas.getContext("2d");
  const most = Math.max(...differ);
  const step = canvas.width / differ.length;
  context.fillStyle = "#9fd3f5";
  differ.forEach((count, at) => {
    const height = count ? Math.max(2, (12 * count) / most) : 0;
    context.fillRect(at * step, 12 - height, Math.max(1, step - 1), height);
  });
}

async function render() {
  if (!current) return;
  const [pair, at] = [current, index];
  const found = await slice(pair, at);
  if (pair !== current || at !== index) return;
  const one = view !== "side";
  find("pictures").classList.toggle("one", one);
  find("figure-right").hidden = one;
  const shown = view === "side" ? [[0], [1]] : view === "both" ? [[0, 1]] : [[blinkSide]];
  const where = pair.about.shape[0] > 1 ? `, slice ${at + 1} of ${pair.about.shape[0]}` : "";
  shown.forEach((sides, i) => {
    const name = sides.map((side) => SIDES[side]).join(" and ");
    captions[i].textContent = name;
    canvases[i].setAttribute("aria-label", `${name} mask on the image${where}`);
    draw(canvases[i], pair.about, found, look, sides);
  });
  if (pair.about.shape[0] > 1) {
    find("slice").value = at + 1;
    find("slice-text").textContent = `Slice ${at + 1} of ${pair.about.shape[0]}`;
    bars();
  }
  blink();
}

/** Start or stop the change of masks in view `blink`. A reader who asks for less motion changes masks by hand. */
function blink() {
  const moves = view === "blink" && !paused && !still.matches;
  if (moves && !timer) {
    timer = setInterval(() => {
      blinkSide = 1 - blinkSide;
      render();
    }, BLINK_MS);
  } else if (!moves && timer) {
    clearInterval(timer);
    timer = 0;
  }
  find("view-text").textContent = VIEW_TEXT[view];
  const [swap, pause] = ["swap", "pause"].map((name) => document.querySelector(`[data-do="${name}"]`));
  swap.hidden = view !== "blink";
  pause.hidden = view !== "blink" || still.matches;
  pause.setAttribute("aria-pressed", String(paused));
}

// ---- what the reviewer can do -----------------------------------------------------------------------------------

const STEP = 40;
const acts = {
  undo,
  view: () => {
    view = VIEWS[(VIEWS.indexOf(view) + 1) % VIEWS.length];
    legend();
    render();
  },
  swap: () => {
    if (view !== "blink") return;
    paused = true;
    blinkSide = 1 - blinkSide;
    render();
    tell(`${SIDES[blinkSide]} mask.`);
  },
  pause: () => {
    paused = !paused;
    render();
  },
  difference: (button) => toggle("difference", button),
  outlines: (button) => toggle("outlines", button),
  channel: () => {
    look.channel = (look.channel + 1) % current.about.channels.length;
    describe();
    render();
  },
  closer: () => zoomBy(1.25),
  farther: () => zoomBy(0.8),
  fit: () => {
    fit();
    render();
  },
  masks: async () => {
    const box = boxOf(await slice(current, index), current.about.shape.slice(1));
    if (box) zoomTo(box);
    render();
  },
  back: () => toSlice(index - 1),
  forward: () => toSlice(index + 1),
  best: () => toSlice(current.about.first),
  later: () => toDifference(1),
  earlier: () => toDifference(-1),
  darker: () => windowBy(0.05, 0),
  brighter: () => windowBy(-0.05, 0),
  flatter: () => windowBy(0, 0.1),
  steeper: () => windowBy(0, -0.1),
  window: () => {
    windowsOf = null;
    setWindows(current.about.window);
    render();
  },
  drag: (button) => {
    dragWindow = !dragWindow;
    button.setAttribute("aria-pressed", String(dragWindow));
  },
  "move-left": () => moveBy(STEP, 0),
  "move-right": () => moveBy(-STEP, 0),
  "move-up": () => moveBy(0, STEP),
  "move-down": () => moveBy(0, -STEP),
};

function toggle(name, button) {
  look[name] = !look[name];
  (button ?? document.querySelector(`[data-do="${name}"]`)).setAttribute("aria-pressed", String(look[name]));
  render();
}

const KEYS = {
  o: "view", " ": "swap", p: "pause", d: "difference", h: "outlines", c: "channel", "+": "closer", "=": "closer",
  "-": "farther", 0: "fit", f: "masks", m: "best", n: "later", q: "earlier", ",": "darker", ".": "brighter",
  "[": "flatter", "]": "steeper", w: "window", z: "undo", backspace: "undo", arrowup: "forward", arrowdown: "back",
};
const SHIFTED = { arrowleft: "move-left", arrowright: "move-right", arrowup: "move-up", arrowdown: "move-down" };
const ANSWERS = { a: "left", arrowleft: "left", b: "right", arrowright: "right", e: "equal", u: "unusable", s: "skip" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const pressed = event.key.toLowerCase();
  const on = event.target;
  if (!current && KEYS[pressed] !== "undo") return;
  if (on.matches("input:not([type=checkbox])")) return;
  if (on.matches("button, summary, input") && [" ", "enter"].includes(pressed)) {
    // A key that is held down presses a button again and again.
    if (event.repeat && on.dataset.answer) event.preventDefault();
    return;
  }
  if (!find("keys").checked && pressed.length === 1) return;
  const act = event.shiftKey ? (SHIFTED[pressed] ?? (KEYS[pressed] === "closer" && "closer")) : KEYS[pressed];
  if (act) {
    event.preventDefault();
    acts[act]();
  } else if (ANSWERS[pressed] && !event.shiftKey) {
    event.preventDefault();
    if (!event.repeat) answer(ANSWERS[pressed]);
  }
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  // A button that was clicked with a pointer would keep the focus, and Space would press it again for the next pair. A
  // button that was pressed by key (detail 0) keeps the focus.
  if (event.detail && event.target.closest("#review button, summary")) find("review").focus({ preventScroll: true });
  if (!button || !current) {
    if (button?.dataset.do === "undo") undo();
    return;
  }
  if (button.dataset.answer) answer(button.dataset.answer);
  else if (button.dataset.do) acts[button.dataset.do](button);
});

find("slice").addEventListener("input", (event) => toSlice(Number(event.target.value) - 1));

for (const canvas of canvases) {
  const fingers = new Map();
  let windowing = false;
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    windowing = dragWindow || event.shiftKey || event.button === 2;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before || !current) return;
    const [x, y] = [event.clientX - before[0], event.clientY - before[1]];
    if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const gap = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
      zoomBy(gap([event.clientX, event.clientY]) / Math.max(gap(before), 1), canvas, event);
    } else if (windowing) windowBy(y / 300, x / 200);
    else moveBy(x, y);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!current) return;
      event.preventDefault();
      const volume = current.about.shape[0] > 1;
      if (volume && !event.ctrlKey) toSlice(index + Math.sign(event.deltaY));
      else zoomBy(Math.exp(-event.deltaY / 400), canvas, event);
    },
    { passive: false },
  );
}

new ResizeObserver(() => render()).observe(find("pictures"));
still.addEventListener("change", () => render());

find("reviewer").value = sessionStorage.getItem("reviewer") ?? "";
find("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  reviewer = find("reviewer").value;
  problem("");
  try {
    await refill();
    sessionStorage.setItem("reviewer", reviewer);
    find("start").hidden = true;
    await next();
  } catch (error) {
    problem(error.status ? error.message : "The server does not answer. Start it again, and open the address it prints.");
  }
});
addEventListener("hashchange", () => {
  key = location.hash.slice(1);
  problem("");
});
if (!key) problem("This address lacks its key. Open the address that the server printed.");
