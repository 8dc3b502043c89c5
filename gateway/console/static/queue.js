// Who waits, by class and tenant; and how many replicas each model needs, beside those it has.

import { ago, at, count, duration, el, mark, part, put, rows, short, svg } from "./dom.js";
import { area, canvas, highest, line, stepped } from "./draw.js";

const CLASSES = ["interactive", "default", "batch"];
const HEIGHT = 72;
const MOST_MODELS = 6;

function queueRow() {
  return el("li", {},
    el("span", { class: "class-name", "data-part": "class" }),
    el("span", { class: "tenant", "data-part": "tenant" }),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", "data-part": "fill" })),
    el("span", { class: "figure", "data-part": "figure" }),
    el("span", { class: "detail", "data-part": "detail" }));
}

/** All classes, those in which nobody waits too. */
function queueItems(waiting) {
  const items = [];
  for (const name of CLASSES) {
    const found = waiting.filter((row) => row.service_class === name);
    if (found.length) items.push(...found);
    else items.push({ service_class: name, tenant: "", requests: 0, tokens: 0, oldest_s: 0 });
  }
  return items;
}

/** Bring the queue up to date. */
export function showQueue(snapshot) {
  const { waiting } = snapshot;
  const total = waiting.reduce((sum, row) => sum + row.requests, 0);
  const most = Math.max(4, ...waiting.map((row) => row.requests));
  let previous = "";
  rows(at("queue"), queueItems(waiting), queueRow, (node, row) => {
    mark(node, "data-class", row.service_class);
    mark(node, "data-first", row.service_class === previous ? "no" : "yes");
    previous = row.service_class;
    put(part(node, "class"), row.service_class);
    put(part(node, "tenant"), row.requests ? row.tenant || (snapshot.names_tenants ? "anybody" : "all tenants") : "");
    const fill = part(node, "fill");
    fill.style.width = `${((row.requests / most) * 100).toFixed(1)}%`;
    put(part(node, "figure"), short(row.requests));
    put(part(node, "detail"), row.requests ? `${short(row.tokens)} tokens, oldest ${duration(row.oldest_s)}` : "");
  });
  put(at("queue-note"), total ? `${count(total, "request")} held back until a replica can begin` : "nobody waits");
}

function chart() {
  const drawing = canvas(HEIGHT, { class: "chart" });
  for (const name of ["loading", "ready", "needed"]) drawing.append(svg("path", { class: `demand-${name}` }));
  return el("figure", {},
    el("figcaption", {},
      el("span", { class: "name", "data-part": "model" }), el("span", { class: "detail", "data-part": "detail" })),
    el("div", { class: "plot" }, el("span", { class: "top", "data-part": "top", "aria-hidden": "true" }), drawing,
      el("span", { class: "span", "data-part": "span", "aria-hidden": "true" })));
}

function demandText(each) {
  const loading = each.replicas_loading ? `, ${each.replicas_loading} loading` : "";
  const needed = Number.isInteger(each.replicas_needed) ? each.replicas_needed : each.replicas_needed.toFixed(1);
  return `needs ${needed}, ${each.replicas_ready} ready${loading} · ${Math.round(each.saturation * 100)}% busy`;
}

/** Bring demand up to date: the models with most of it. */
export function showDemand(snapshot, history) {
  const models = [...snapshot.demand]
    .sort((one, other) => other.replicas_needed - one.replicas_needed || other.replicas_ready - one.replicas_ready)
    .slice(0, MOST_MODELS);
  at("demand-empty").hidden = models.length > 0;
  rows(at("demand"), models, chart, (node, each) => {
    const of = (name) => history.series((point) => {
      const known = point.demand.get(each.model);
      return known ? name(known) : null;
    });
    const needed = stepped(of((known) => known.replicas_needed));
    const ready = stepped(of((known) => known.replicas_ready));
    const all = stepped(of((known) => known.replicas_ready + known.replicas_loading));
    const most = Math.ceil(highest([needed, all], 1)) * 1.1;
    const [loading, has, wants] = node.querySelector("svg").children;
    mark(loading, "d", area(all, HEIGHT, most));
    mark(has, "d", area(ready, HEIGHT, most));
    mark(wants, "d", line(needed, HEIGHT, most));
    put(part(node, "model"), each.model);
    put(part(node, "detail"), demandText(each));
    put(part(node, "span"), `last ${ago(history.window)}`);
    put(part(node, "top"), String(Math.ceil(highest([needed, all], 1))));
  });
}
