// The live page: listens to /events, shows /stream.mjpg. Whatever comes from outside is put into the page as text only.
"use strict";

const SPAN_MS = 60_000; // the plot
const SAMPLE_MS = 200; // between two of its samples
const GAP_MS = 1_500; // a longer silence breaks the plot
const NEUTRAL_MS = 200; // between two neutral faces
const SILENCE_MS = 5_000; // the daemon says something every second
const RETRY_MS = 1_500;
const MESSAGES_SHOWN = 80;
const LEADING_KEYS = ["event", "state", "status", "reason", "track", "emotion", "neutrality", "quality", "latency_ms", "fps"];
const HIDDEN_KEYS = ["schema", "device", "boot", "time"];

const root = document.documentElement;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);
const element = (name, className, text) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const percent = (value) => `${Math.round(value * 100)} %`;
const hue = (emotion) => getComputedStyle(root).getPropertyValue(`--${emotion}`).trim() || "#93a4b8";

const picture = $("picture");
const overlay = $("overlay");
const plot = $("plot");
let mirrored = root.dataset.mirrored === "true";
let emotions = [];
let hues = {};
let boot = null;
let version = null;
let faces = [];
let chosenTrack = null; // null: the largest face
let shown = null;
let lastHeard = 0;

// ---- the link to the daemon ----

let source = null;
let retryTimer = 0;
let pictureTimer = 0;
let pictureCount = 0;

function connect() {
  disconnect();
  lastHeard = Date.now();
  source = new EventSource("/events");
  for (const [name, handle] of Object.entries({ hello, observation, message, status })) {
    source.addEventListener(name, (event) => {
      lastHeard = Date.now();
      handle(JSON.parse(event.data));
    });
  }
  source.onerror = away;
}

function disconnect() {
  clearTimeout(retryTimer);
  source?.close();
  source = null;
}

function away() {
  disconnect();
  root.dataset.link = "away";
  showState("away", "away");
  veil("The daemon is away. Trying again …");
  forgetFaces();
  retryTimer = setTimeout(connect, RETRY_MS);
}

function hello(data) {
  if (version !== null && version !== data.version) return location.reload();
  if (root.dataset.link !== "connecting") startPicture();
  root.dataset.link = "up";
  if (boot !== data.boot) lastMessage = 0;
  ({ boot, version, mirrored, emotions } = data);
  root.dataset.mirrored = String(mirrored);
  hues = Object.fromEntries(emotions.map((emotion) => [emotion, hue(emotion)]));
  $("device").textContent = data.device;
  document.title = `visaged · ${data.device}`;
  makeBars();
  veil("");
}

function startPicture() {
  clearTimeout(pictureTimer);
  pictureCount += 1;
  picture.src = `/stream.mjpg?${pictureCount}`;
}

picture.addEventListener("error", () => {
  clearTimeout(pictureTimer);
  pictureTimer = setTimeout(() => root.dataset.link === "up" && startPicture(), RETRY_MS);
});

// A page that nobody looks at lets the device rest.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    disconnect();
    clearTimeout(pictureTimer);
    root.dataset.link = "resting";
    picture.removeAttribute("src");
  } else if (root.dataset.link === "resting") {
    connect();
  }
});

setInterval(() => {
  if (source && Date.now() - lastHeard > SILENCE_MS) away();
}, 1_000);

function veil(text) {
  $("veil").hidden = text === "";
  $("veil").textContent = text;
}

function showState(state, text) {
  root.dataset.state = state;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

function status(data) {
  showState(data.state, data.state);
  veil(data.reason ?? (data.state === "starting" ? "Starting …" : ""));
  $("consent").hidden = data.notice === null;
  if ($("consent").textContent !== (data.notice ?? "")) $("consent").textContent = data.notice ?? "";
  $("fps").textContent = data.fps === null ? "–" : data.fps.toFixed(data.fps < 9.95 ? 1 : 0);
  $("latency").textContent = data.latency_ms > 0 ? `${data.latency_ms.toFixed(data.latency_ms < 10 ? 1 : 0)} ms` : "–";
  if (data.fps === 0) forgetFaces();
  showTryOn(data.try_on);
}

// ---- one frame ----

function observation(data) {
  if (data.width > 0 && data.height > 0) {
    const glass = $("glass").style;
    glass.setProperty("--aspect", `${data.width} / ${data.height}`);
    glass.setProperty("--ratio", String(data.width / data.height));
  }
  faces = data.faces;
  $("count").textContent = String(faces.length);
  const area = (face) => face.box[2] * face.box[3];
  const largest = faces.reduce((best, face) => (best && area(best) >= area(face) ? best : face), null);
  const before = shown;
  shown = faces.find((face) => face.track === chosenTrack) ?? largest;
  if (chosenTrack !== null && shown?.track !== chosenTrack) chosenTrack = null;
  showPicker();
  drawBoxes();
  showReading(before);
  sample();
}

function forgetFaces() {
  if (faces.length === 0 && shown === null) return;
  faces = [];
  const before = shown;
  shown = null;
  $("count").textContent = "–";
  showPicker();
  drawBoxes();
  showReading(before);
}

function showPicker() {
  const tracks = faces.map((face) => face.track);
  const key = `${chosenTrack}:${tracks}`;
  const picker = $("picker");
  if (picker.dataset.key === key) return;
  picker.dataset.key = key;
  const hadFocus = picker.contains(document.activeElement) ? document.activeElement.dataset.track : undefined;
  const choices = tracks.length > 1 ? [null, ...tracks] : [];
  picker.replaceChildren(
    ...choices.map((track) => {
      const button = element("button", "", track === null ? "largest" : `#${track}`);
      button.type = "button";
      button.dataset.track = String(track);
      button.setAttribute("aria-pressed", String(track === chosenTrack));
      button.addEventListener("click", () => choose(track));
      return button;
    }),
  );
  if (hadFocus !== undefined) [...picker.children].find((button) => button.dataset.track === hadFocus)?.focus();
}

function choose(track) {
  chosenTrack = track;
  showPicker();
}

/** Left edge of a box as it is seen, 0..1. */
const seenLeft = ([x, , width]) => (mirrored ? 1 - x - width : x);

overlay.addEventListener("click", (event) => {
  const x = event.offsetX / overlay.clientWidth;
  const y = event.offsetY / overlay.clientHeight;
  const hit = faces.find(({ box }) => {
    const left = seenLeft(box);
    return x >= left && x <= left + box[2] && y >= box[1] && y <= box[1] + box[3];
  });
  choose(hit && hit.track !== chosenTrack ? hit.track : null);
});

function fitted(canvas) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  return [pen, canvas.clientWidth, canvas.clientHeight];
}

function drawBoxes() {
  const [pen, width, height] = fitted(overlay);
  overlay.dataset.boxes = String(faces.length);
  for (const face of faces) drawBox(pen, width, height, face);
}

function drawBox(pen, width, height, face) {
  const [left, top] = [seenLeft(face.box) * width, face.box[1] * height];
  const [w, h] = [face.box[2] * width, face.box[3] * height];
  const colour = hues[face.emotion] ?? "#fff";
  const main = face.track === shown?.track;
  const radius = Math.min(14, w / 5, h / 5);
  const arm = Math.min(w, h) * 0.26;
  pen.globalAlpha = main ? 1 : 0.75;
  pen.strokeStyle = colour;
  pen.lineWidth = main ? 3 : 2;
  pen.lineCap = "round";
  pen.shadowColor = "#000c";
  pen.shadowBlur = 6;
  pen.beginPath();
  for (const [x, y, dx, dy] of [[left, top, 1, 1], [left + w, top, -1, 1], [left + w, top + h, -1, -1], [left, top + h, 1, -1]]) {
    pen.moveTo(x, y + dy * arm);
    pen.arcTo(x, y, x + dx * arm, y, radius);
    pen.lineTo(x + dx * arm, y);
  }
  pen.stroke();
  const size = Math.max(12, Math.min(17, width / 45));
  const text = `${face.emotion}  #${face.track}`;
  pen.font = `600 ${size}px system-ui, sans-serif`;
  const chip = pen.measureText(text).width + size;
  const chipHeight = size * 1.6;
  const x = Math.max(4, Math.min(width - chip - 4, left + w / 2 - chip / 2));
  const above = top - chipHeight - 8;
  const y = above >= 4 ? above : Math.min(height - chipHeight - 4, top + h + 8);
  pen.fillStyle = colour;
  pen.beginPath();
  pen.roundRect(x, y, chip, chipHeight, chipHeight / 2);
  pen.fill();
  pen.shadowBlur = 0;
  pen.fillStyle = "#0a0d12";
  pen.textBaseline = "middle";
  pen.fillText(text, x + size / 2, y + chipHeight / 2 + 0.5);
  pen.globalAlpha = 1;
}

// ---- the reading of the face shown ----

const bars = new Map();

function makeBars() {
  if (bars.size > 0) return;
  for (const emotion of emotions) {
    const row = element("li");
    const gauge = element("span", "gauge");
    const fill = element("span");
    const value = element("span", "value", "–");
    row.style.setProperty("--hue", `var(--${emotion})`);
    row.dataset.emotion = emotion;
    gauge.append(fill);
    row.append(element("span", "", emotion), gauge, value);
    bars.set(emotion, { row, fill, value });
    $("bars").append(row);
  }
}

function showReading(before) {
  const mood = shown ? hues[shown.emotion] : "";
  if (mood) root.style.setProperty("--mood", mood);
  else root.style.removeProperty("--mood");
  $("headline-emotion").textContent = shown?.emotion ?? "";
  const none = root.dataset.link === "up" ? "nobody in view" : "";
  $("headline-face").textContent = shown ? `face ${shown.track} · ${percent(probability(shown, shown.emotion))}` : none;
  for (const [emotion, { row, fill, value }] of bars) {
    const p = shown ? probability(shown, emotion) : 0;
    row.classList.toggle("shown", shown?.emotion === emotion);
    fill.style.transform = `scaleX(${p})`;
    value.textContent = shown ? percent(p) : "–";
  }
  const removed = shown ? 1 - shown.neutrality : 0;
  $("removed-bar").style.transform = `scaleX(${removed})`;
  $("removed").textContent = shown ? percent(removed) : "–";
  if (shown && (before?.emotion !== shown.emotion || before?.track !== shown.track)) {
    $("spoken").textContent = `Face ${shown.track}: ${shown.emotion}`;
  }
  drawLiveFace();
  showNeutral();
}

const probability = (face, emotion) => face.probabilities[emotions.indexOf(emotion)] ?? 0;

function drawLiveFace() {
  const canvas = $("live-face");
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (!shown || !picture.naturalWidth) return;
  const [pw, ph] = [picture.naturalWidth, picture.naturalHeight];
  const [x, y, w, h] = [shown.box[0] * pw, shown.box[1] * ph, shown.box[2] * pw, shown.box[3] * ph];
  const side = Math.max(w, h) * 1.12;
  pen.save();
  if (mirrored) {
    pen.translate(canvas.width, 0);
    pen.scale(-1, 1);
  }
  pen.drawImage(picture, x + w / 2 - side / 2, y + h / 2 - side / 2, side, side, 0, 0, canvas.width, canvas.height);
  pen.restore();
}

let neutralAsked = 0;
let neutralPending = false;
let neutralNext = new Image();

function showNeutral() {
  const still = $("neutral-face");
  if (!shown?.neutral) {
    still.hidden = true;
    return;
  }
  const now = Date.now();
  if (neutralPending || now - neutralAsked < NEUTRAL_MS) return;
  [neutralAsked, neutralPending] = [now, true];
  const next = neutralNext;
  const track = shown.track;
  next.onload = () => {
    neutralPending = false;
    if (shown?.track !== track) return;
    still.src = next.src;
    still.hidden = false;
    neutralNext = new Image();
  };
  next.onerror = () => (neutralPending = false);
  next.src = `/neutral/${track}.jpg?${now}`;
}

// ---- the last minute ----

const samples = []; // {time, track, emotion, probabilities}; without a face, only the time

function sample() {
  const now = Date.now();
  if (samples.length > 0 && now - samples.at(-1).time < SAMPLE_MS) return;
  samples.push(shown ? { time: now, track: shown.track, emotion: shown.emotion, probabilities: shown.probabilities } : { time: now });
  while (samples[0].time < now - SPAN_MS - GAP_MS) samples.shift();
}

/** Samples in a row that can be joined: the same face, no gap. */
function runs() {
  const found = [];
  let before = null;
  for (const now of samples) {
    if (now.probabilities) {
      if (before?.track === now.track && now.time - before.time < GAP_MS) found.at(-1).push(now);
      else found.push([now]);
    }
    before = now;
  }
  return found;
}

function drawPlot() {
  const [pen, width, height] = fitted(plot);
  const ribbon = 6;
  const [top, bottom] = [ribbon + 5, height - 18];
  const end = Date.now();
  const x = (time) => width - ((end - time) / SPAN_MS) * width;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "bottom";
  for (let seconds = 0; seconds <= 60; seconds += 15) {
    const at = width - (seconds / 60) * width;
    pen.fillStyle = "#1b222d";
    pen.fillRect(Math.min(width - 1, at), top, 1, bottom - top);
    pen.fillStyle = "#93a0b1";
    pen.textAlign = seconds === 0 ? "right" : seconds === 60 ? "left" : "center";
    pen.fillText(seconds === 0 ? "now" : `-${seconds} s`, at, height);
  }
  // Neutral lies on top and dim, so that what rises from the ground is expression.
  const order = [...emotions.keys()].slice(1).concat(0);
  for (const run of runs()) {
    const floor = run.map(() => 0);
    for (const index of order) {
      pen.beginPath();
      run.forEach((one, i) => pen.lineTo(x(one.time), bottom - (bottom - top) * floor[i]));
      run.forEach((one, i) => (floor[i] = Math.min(1, floor[i] + one.probabilities[index])));
      for (let i = run.length - 1; i >= 0; i -= 1) pen.lineTo(x(run[i].time), bottom - (bottom - top) * floor[i]);
      pen.closePath();
      pen.globalAlpha = index === 0 ? 0.16 : 0.88;
      pen.fillStyle = hues[emotions[index]];
      pen.fill();
    }
    pen.globalAlpha = 1;
    run.forEach((one, i) => {
      const right = run[i + 1]?.time ?? one.time + SAMPLE_MS;
      pen.fillStyle = hues[one.emotion];
      pen.fillRect(x(one.time), 0, x(right) - x(one.time) + 0.5, ribbon);
    });
  }
}

let plotDrawn = 0;
setInterval(() => {
  const now = Date.now();
  if (document.hidden || now - plotDrawn < (reducedMotion.matches ? 1_000 : SAMPLE_MS)) return;
  plotDrawn = now;
  drawPlot();
}, SAMPLE_MS / 2);
addEventListener("resize", () => (drawBoxes(), drawPlot()));

// ---- the try-on ----

const MOST_BYTES = 4 * 1024 * 1024; // as the daemon takes them
const SAID = {
  makeup: "synthetic: make-up put on",
  bare: "synthetic: make-up taken off",
  neutral: "synthetic: expression taken off",
  identity: "synthetic: the reference's face",
  avatar: "synthetic: nobody's face",
};
const OF_REFERENCE = ["makeup", "identity"];
let tryOn = null;
const strength = $("try-on-strength");
let strengthTimer = 0;

function showTryOn(state) {
  $("try-on").hidden = state === null;
  root.toggleAttribute("data-try-on", state !== null);
  const drawn = state !== null && state.strength > 0 ? SAID[state.show] ?? "" : "";
  $("synthetic").hidden = drawn === "";
  $("synthetic").textContent = drawn;
  $("live-caption").textContent = drawn === "" ? "live" : `live, ${drawn}`;
  tryOn = state;
  if (state === null) return;
  for (const button of $("try-on-show").children) {
    const { show } = button.dataset;
    button.hidden = !state.offered.includes(show);
    button.setAttribute("aria-pressed", String(show === state.show));
    button.disabled = OF_REFERENCE.includes(show) && !state.reference;
  }
  $("try-on-file").parentElement.hidden = !OF_REFERENCE.some((show) => state.offered.includes(show));
  $("try-on-forget").hidden = !state.reference;
  // Whoever moves the slider is not pushed.
  if (document.activeElement !== strength) strength.value = String(Math.round(state.strength * 100));
  if (state.problem !== null) say(`turned off: ${state.problem}`);
}

function say(text) {
  $("try-on-said").textContent = text;
}

/** Sends a wish; says why it was refused. */
async function wish(method, path, body) {
  try {
    // Nobody else's page may send this header.
    const answer = await fetch(path, { method, body, headers: { "visaged-page": "1" } });
    say(answer.ok ? "" : (await answer.text()).trim());
  } catch {
    say("the daemon is away");
  }
}

for (const button of $("try-on-show").children) {
  button.addEventListener("click", () => wish("POST", `/try-on?show=${button.dataset.show}${next(button.dataset.show)}`));
}

/** Whoever asks for an avatar while one is shown wants the next. */
function next(show) {
  return show === "avatar" && tryOn?.show === "avatar" ? `&avatar=${tryOn.avatar + 1}` : "";
}
strength.addEventListener("input", () => {
  clearTimeout(strengthTimer);
  strengthTimer = setTimeout(() => wish("POST", `/try-on?strength=${strength.value / 100}`), 60);
});
$("try-on-forget").addEventListener("click", () => wish("DELETE", "/try-on/reference"));
$("try-on-file").addEventListener("change", async () => {
  const [file] = $("try-on-file").files;
  if (!file) return;
  if (file.size > MOST_BYTES) {
    say("the picture's file is larger than 4 MiB");
  } else {
    say("looking at it …");
    await wish("POST", "/try-on/reference", file);
  }
  $("try-on-file").value = "";
});
$("try-on").addEventListener("submit", (event) => event.preventDefault());

// ---- the messages ----

let lastMessage = 0;
let paused = false;
let held = []; // while paused, newest last

function message(data) {
  if (data.seq <= lastMessage) return;
  lastMessage = data.seq;
  if (paused) {
    held.push(data);
    held = held.slice(-MESSAGES_SHOWN);
    $("pause").textContent = `Continue (${held.length}${held.length === MESSAGES_SHOWN ? "+" : ""} new)`;
  } else {
    showMessage(data);
  }
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Continue" : "Pause";
  held.splice(0).forEach(showMessage);
});

function showMessage(data) {
  const list = $("messages");
  $("no-messages").hidden = true;
  const [prefix, tail] = splitTopic(data.topic);
  if (prefix) $("prefix").textContent = `${prefix}…`;
  let value;
  try {
    value = JSON.parse(data.payload);
  } catch {
    value = undefined;
  }
  const item = element("li");
  const details = element("details");
  const summary = element("summary");
  const topic = element("span", "topic", tail);
  topic.title = data.topic;
  if (value?.emotion in hues) topic.style.color = hues[value.emotion];
  const passed = new Date(data.time_ms);
  const time = element("time", "time", passed.toLocaleTimeString([], { hour12: false }));
  time.dateTime = passed.toISOString();
  summary.append(time, topic, briefly(data, value));
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    details.append(element("pre", "", `${data.topic}\n${data.truncated || value === undefined ? plain(data) : JSON.stringify(value, null, 2)}`));
  });
  item.append(details);
  list.prepend(item);
  // Whoever reads further down is not pushed away.
  if (list.scrollTop > 0) list.scrollTop += item.offsetHeight;
  while (list.children.length > MESSAGES_SHOWN) list.lastChild.remove();
}

/** `visaged/v1/site/device/` apart from the rest. */
function splitTopic(topic) {
  const levels = topic.split("/");
  if (levels.length < 5 || levels[0] !== "visaged") return ["", topic];
  return [`${levels.slice(0, 4).join("/")}/`, levels.slice(4).join("/")];
}

function plain(data) {
  if (data.payload === null) return `${data.bytes} bytes that are not text`;
  if (data.bytes === 0) return "(empty)";
  return data.truncated ? `${data.payload} … (${data.bytes} bytes)` : data.payload;
}

function briefly(data, value) {
  const line = element("span", "brief");
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    line.textContent = plain(data);
    return line;
  }
  const rank = (key) => (LEADING_KEYS.includes(key) ? LEADING_KEYS.indexOf(key) : LEADING_KEYS.length);
  const keys = Object.keys(value).filter((key) => !HIDDEN_KEYS.includes(key)).sort((a, b) => rank(a) - rank(b));
  for (const key of keys) {
    line.append(`${key} `, element("b", "", short(value[key])), "  ");
  }
  return line;
}

function short(value) {
  if (typeof value === "number" && !Number.isInteger(value)) return value.toFixed(3);
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return `[${value.map(short).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([key, inner]) => `${key} ${short(inner)}`).join(", ")}}`;
  }
  return String(value);
}

connect();
