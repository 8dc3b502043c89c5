// Which replica holds how much of the prompts that begin alike: rows are families, columns replicas.

import { ago, at, el, long, mark, part, percent, put, rows, short, shortNames } from "./dom.js";

const STEPS = 8;
const ROOM_FOR_FIGURES = 12; // columns

function cell() {
  return el("td", {}, el("span", { "data-part": "share" }));
}

function row() {
  return el("tr", {}, el("th", { scope: "row" },
    el("span", { class: "name", "data-part": "name" }), el("span", { class: "detail", "data-part": "detail" })));
}

function tableParts(table) {
  if (!table.tHead) table.append(el("thead", {}, el("tr")), el("tbody"));
  return [table.tHead.rows[0], table.tBodies[0]];
}

function shown(node, family, replicas, isMixed) {
  put(part(node, "name"), `Prefix ${family.number}`);
  const model = isMixed ? `${family.model}, ` : "";
  put(part(node, "detail"), `${model}${short(family.prompt_tokens)} tokens, ${short(family.requests)}×`);
  const cells = [...node.children].slice(1);
  while (cells.length > replicas.length) cells.pop().remove();
  while (cells.length < replicas.length) {
    cells.push(cell());
    node.append(cells.at(-1));
  }
  cells.forEach((each, index) => {
    const held = family.held[index];
    const share = family.prompt_tokens ? Math.min(held / family.prompt_tokens, 1) : 0;
    mark(each, "data-heat", held ? Math.max(Math.round(share * STEPS), 1) : 0);
    put(part(each, "share"), held ? percent(share) : "0%");
    mark(each, "title", `${replicas[index].id}: ${short(held)} of ${short(family.prompt_tokens)} tokens`);
  });
}

/** Bring the map up to date. */
export function showHeat(snapshot) {
  const { families, replicas } = snapshot;
  const isEmpty = !families.length || !replicas.length;
  at("heat-empty").hidden = !isEmpty;
  at("heat").hidden = isEmpty;
  const latest = Math.min(...families.map((each) => each.last_ago_s));
  const noun = families.length === 1 ? "family" : "families";
  const across = replicas.length > ROOM_FOR_FIGURES ? ` on ${replicas.length} replicas` : "";
  put(at("heat-note"), isEmpty ? "" : `${long(families.length)} ${noun}${across}, last asked for: ${ago(latest)}`);
  if (isEmpty) return;
  const [head, body] = tableParts(at("heat"));
  mark(at("heat"), "data-figures", replicas.length <= ROOM_FOR_FIGURES ? "yes" : "no");
  const names = shortNames(replicas.map((each) => each.id));
  rows(head, ["Family", ...names], () => el("th", { scope: "col" }, el("span")), (node, name, index) => {
    put(node.firstElementChild, name);
    mark(node, "title", index ? replicas[index - 1].id : null);
  });
  const isMixed = new Set(families.map((each) => each.model)).size > 1;
  rows(body, families, row, (node, family) => shown(node, family, replicas, isMixed));
}
