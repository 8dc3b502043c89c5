// The replicas: what each is, how it is, what it has to do and what its cache holds.

import { at, count, el, long, mark, NONE, part, percent, put, rows, short } from "./dom.js";

const MANY = 12;
const STATES = {
  healthy: "good", suspect: "warn", ejected: "bad", probing: "warn",
  joining: "soft", asleep: "soft", draining: "warn",
};
const GRADES = {
  exact: "exact: by its events", partial: "partial: some events missed", approximate: "believed: by what was sent",
};

function bar(name) {
  return el("div", { class: "bar-of" },
    el("span", { class: "track", "aria-hidden": "true" },
      el("span", { class: "fill back", "data-part": `${name}-back` }),
      el("span", { class: "fill", "data-part": `${name}-fill` })),
    el("span", { class: "figure", "data-part": name }));
}

function row() {
  return el("tr", {},
    el("th", { scope: "row" },
      el("span", { class: "name", "data-part": "id" }), el("span", { class: "models", "data-part": "models" })),
    el("td", { "data-part": "tp" }),
    el("td", {}, el("span", { class: "state", "data-part": "state" })),
    el("td", {}, bar("inflight")),
    el("td", { class: "number", "data-part": "waiting" }),
    el("td", {}, bar("kv")),
    el("td", { class: "number", "data-part": "pace" }),
    el("td", { class: "grade", "data-part": "grade" }));
}

function width(node, share) {
  const value = `${(Math.min(Math.max(share, 0), 1) * 100).toFixed(1)}%`;
  if (node.style.width !== value) node.style.width = value;
}

/** What sets it apart from the others. */
function described({ models, role }, isMixed) {
  const said = role === "both" ? [] : [role];
  if (!models.length) said.push("models unknown");
  else if (isMixed) said.push(...models);
  return said.join(", ");
}

function degree(engine) {
  const { tensor_parallel: tp, pipeline_parallel: pp } = engine;
  if (tp === null) return NONE;
  return pp > 1 ? `${tp} × ${pp}` : String(tp);
}

function update(node, replica, most, isMixed) {
  const { load, engine } = replica;
  put(part(node, "id"), replica.id);
  put(part(node, "models"), described(replica, isMixed));
  put(part(node, "tp"), degree(engine));
  const state = part(node, "state");
  put(state, replica.health);
  mark(state, "data-tone", STATES[replica.health] ?? "soft");
  put(part(node, "inflight"), short(replica.inflight));
  mark(part(node, "inflight").parentElement, "title",
    `${long(replica.own)} by this gateway; ${short(replica.prompt_tokens)} prompt tokens still to be read`);
  width(part(node, "inflight-fill"), replica.inflight / most);
  put(part(node, "waiting"), load.waiting ? short(load.waiting) : "0");
  mark(part(node, "waiting"), "data-some", load.waiting ? "yes" : "no");
  const size = engine.cache_tokens;
  const held = size ? load.held_tokens / size : null;
  put(part(node, "kv"), size ? percent(Math.min(held, 1)) : load.held_tokens ? short(load.held_tokens) : NONE);
  width(part(node, "kv-back"), held ?? 0);
  width(part(node, "kv-fill"), size ? load.used_tokens / size : 0);
  mark(part(node, "kv").parentElement, "title", size
    ? `${short(load.held_tokens)} of ${short(size)} tokens held, ${short(load.used_tokens)} by what runs`
    : "It has not said how large its cache is");
  put(part(node, "pace"), load.tokens_per_s ? short(load.tokens_per_s) : NONE);
  put(part(node, "grade"), load.grade === null ? NONE : load.grade === "approximate" ? "believed" : load.grade);
  mark(part(node, "grade"), "title", GRADES[load.grade] ?? "The policy in use does not think of caches");
}

/** Where there are many, those that are not as they should be come first. */
function inOrder(replicas) {
  if (replicas.length <= MANY) return replicas;
  return [...replicas].sort((one, other) => (one.health === "healthy") - (other.health === "healthy"));
}

/** Bring the table up to date. */
export function showFleet(snapshot) {
  const replicas = inOrder(snapshot.replicas);
  const most = Math.max(8, ...replicas.map((each) => each.inflight));
  const sets = new Set(replicas.map((each) => each.models.join()));
  mark(at("fleet"), "data-many", replicas.length > MANY ? "yes" : "no");
  rows(at("replicas"), replicas, row, (node, replica) => update(node, replica, most, sets.size > 1));
  at("fleet-empty").hidden = replicas.length > 0;
  const ready = replicas.filter((each) => ["healthy", "suspect"].includes(each.health)).length;
  const what = sets.size === 1 && replicas[0].models.length ? ` · ${replicas[0].models.join(", ")}` : "";
  put(at("fleet-note"), replicas.length ? `${ready} of ${count(replicas.length, "replica")} take work${what}` : "");
}
