// The first row: six figures, each with its last minutes.

import { at, duration, el, mark, NONE, part, percent, put, rows, short, svg } from "./dom.js";
import { area, canvas, highest, line } from "./draw.js";

const HEIGHT = 44;

const FIGURES = [
  {
    title: "Requests", unit: "per second", value: (p) => rate(p.requestsPerS),
    more: (p) => `${short(p.open)} open${p.failed ? `, ${short(p.failed)} failed so far` : ""}`, main: (p) => p.requestsPerS,
  },
  {
    title: "Streamed", unit: "chunks per second", value: (p) => rate(p.chunksPerS),
    more: (p) => (p.output ? `${short(p.output)} tokens counted` : "no tokens counted"), main: (p) => p.chunksPerS,
  },
  {
    title: "First token", unit: "TTFT, median of 10 s", value: (p) => duration(p.ttft50),
    more: (p) => within(p.ttft95), main: (p) => p.ttft50, other: (p) => p.ttft95,
  },
  {
    title: "Between tokens", unit: "ITL, median of 10 s", value: (p) => duration(p.itl50),
    more: (p) => within(p.itl95), main: (p) => p.itl50, other: (p) => p.itl95,
  },
  {
    title: "Prompt tokens cached", unit: "of those read in 10 s", value: (p) => percent(p.hitShare),
    more: (p) => (p.prompt ? `${short(p.cached)} of ${short(p.prompt)} in all` : "nobody has asked for usage"), main: (p) => p.hitShare, most: 1,
  },
  {
    title: "In flight", unit: "requests at replicas", value: (p) => short(p.inflight),
    more: (p) => (p.waiting ? `${short(p.waiting)} waiting` : "none waiting"), main: (p) => p.inflight,
    other: (p) => p.waiting,
  },
];

const within = (seconds) => (seconds === null ? "no stream of late" : `95% within ${duration(seconds)}`);

function rate(perSecond) {
  if (perSecond === null) return NONE;
  return perSecond < 10 ? perSecond.toFixed(1) : short(perSecond);
}

function tile() {
  return el("div", { class: "tile" },
    el("h3", { "data-part": "title" }),
    el("p", { class: "value", "data-part": "value" }),
    el("p", { class: "unit", "data-part": "unit" }),
    canvas(HEIGHT, { class: "spark" }),
    el("p", { class: "more", "data-part": "more" }));
}

function drawn(node, figure, history) {
  const drawing = node.querySelector("svg");
  if (!drawing.children.length) {
    for (const name of ["area", "other", "main"]) drawing.append(svg("path", { class: `spark-${name}` }));
  }
  const main = history.series(figure.main);
  const other = figure.other ? history.series(figure.other) : [];
  const most = highest([main, other], figure.most ?? 0);
  const [ground, above, below] = drawing.children;
  mark(ground, "d", area(main, HEIGHT, most));
  mark(above, "d", line(other, HEIGHT, most));
  mark(below, "d", line(main, HEIGHT, most));
}

/** Bring them up to date. */
export function showFigures(point, history) {
  rows(at("figures"), FIGURES, tile, (node, figure) => {
    put(part(node, "title"), figure.title);
    put(part(node, "value"), figure.value(point));
    put(part(node, "unit"), figure.unit);
    put(part(node, "more"), figure.more(point));
    mark(part(node, "more"), "data-drawn", figure.other ? "yes" : "no");
    drawn(node, figure, history);
  });
}
