// The page: keeps the stream, gives each panel what is new, and looks after the few controls.

import { Chat } from "./chat.js";
import { showDecisions } from "./decisions.js";
import { at, count, duration, mark, put } from "./dom.js";
import { showFigures } from "./figures.js";
import { showFleet } from "./fleet.js";
import { showHeat } from "./heat.js";
import { History } from "./history.js";
import { showDemand, showQueue } from "./queue.js";
import { Stream } from "./stream.js";

const SAID_FOR_MS = 10_000;
const THEMES = ["auto", "light", "dark"];

const history = new History();
const health = new Map();
let key = "";
let latest = null;
let point = null;
let isPaused = false;
let theme = 0;
let saying = 0;

const chat = new Chat(() => key);

function show() {
  showFigures(point, history);
  showFleet(latest);
  showQueue(latest);
  showDemand(latest, history);
  showHeat(latest);
  showDecisions(latest);
}

/** Say it aloud, and show it for a while. */
function say(text) {
  clearTimeout(saying);
  at("news").textContent = "";
  requestAnimationFrame(() => put(at("news"), text));
  saying = setTimeout(() => put(at("news"), ""), SAID_FOR_MS);
}

/** Changes of replicas' states are told aloud; figures, which change every second, are not. */
function tellNews(replicas) {
  const said = [];
  for (const { id, health: now } of replicas) {
    const was = health.get(id);
    if (was !== undefined && was !== now) said.push(`${id} is ${now}.`);
    else if (was === undefined && health.size) said.push(`${id} has joined.`);
  }
  const here = new Set(replicas.map((each) => each.id));
  for (const id of health.keys()) if (!here.has(id)) said.push(`${id} has left.`);
  health.clear();
  for (const { id, health: now } of replicas) health.set(id, now);
  if (said.length) say(said.slice(0, 3).join(" ") + (said.length > 3 ? ` And ${said.length - 3} more.` : ""));
}

function summary() {
  if (!latest) return "Nothing is known yet.";
  const ready = latest.replicas.filter((each) => ["healthy", "suspect"].includes(each.health)).length;
  const waiting = point.waiting ? `${count(point.waiting, "request")} waiting` : "none waiting";
  const ttft = point.ttft50 === null ? "" : ` Half of first tokens came within ${duration(point.ttft50)}.`;
  return `${ready} of ${count(latest.replicas.length, "replica")} take work, ${count(point.inflight, "request")} in flight, ${waiting}.${ttft}`;
}

function unlock(why) {
  put(at("key-why"), why || "A tenant's key shows the fleet and lets you chat; the admin key shows tenants' names too.");
  if (!at("key-dialog").open) at("key-dialog").showModal();
  at("key-text").focus();
}

const stream = new Stream({
  snapshot(document) {
    latest = document;
    point = history.add(document);
    tellNews(document.replicas);
    chat.offer(new Set(document.replicas.filter((each) => ["healthy", "suspect", "asleep"].includes(each.health))
      .flatMap((each) => each.models).concat(document.demand.map((each) => each.model))));
    const worker = document.worker ? ` · worker ${document.worker[0]} of ${document.worker[1]}` : "";
    put(at("where"), `${location.host}${worker}${document.is_draining ? " · draining" : ""}`);
    if (!isPaused) show();
  },
  state(name, text, trouble = "") {
    mark(at("link"), "data-state", isPaused && name === "live" ? "paused" : name);
    put(at("link-text"), isPaused && name === "live" ? "Paused" : text);
    put(at("trouble"), trouble);
    at("trouble").hidden = !trouble;
    document.body.toggleAttribute("data-stale", name === "lost");
  },
  locked: unlock,
});

at("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  mark(at("pause"), "aria-pressed", String(isPaused));
  put(at("pause"), isPaused ? "Resume" : "Pause");
  if (!isPaused && latest) show();
});
at("summary").addEventListener("click", () => say(summary()));
at("theme").addEventListener("click", () => {
  theme = (theme + 1) % THEMES.length;
  const name = THEMES[theme];
  mark(document.documentElement, "data-theme", name === "auto" ? null : name);
  put(at("theme"), `Theme: ${name}`);
});
at("key").addEventListener("click", () => unlock(""));
at("key-cancel").addEventListener("click", () => at("key-dialog").close());
at("key-forget").addEventListener("click", () => use(""));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  use(at("key-text").value.trim());
});

function use(typed) {
  key = typed;
  at("key-text").value = "";
  at("key-dialog").close();
  put(at("key"), key ? "Key set" : "Key");
  stream.use(key);
}

put(at("where"), location.host);
stream.run();
