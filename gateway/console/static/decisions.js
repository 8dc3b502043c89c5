// Where requests went of late, and why there, in words.

import { ago, at, duration, el, long, mark, part, put, rows, short, shortNames } from "./dom.js";

const MOST = 24;

function row() {
  return el("li", {},
    el("span", { class: "ago", "data-part": "ago" }),
    el("span", { class: "to" },
      el("span", { class: "name", "data-part": "replica" }), el("span", { class: "reason", "data-part": "reason" })),
    el("span", { class: "prompt" },
      el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "fill", "data-part": "cached" })),
      el("span", { class: "figure", "data-part": "prompt" })),
    el("span", { class: "expected", "data-part": "expected" }),
    el("span", { class: "why", "data-part": "why" }));
}

const delay = (prediction) => prediction.wait_s === null || prediction.prefill_s === null
  ? null : prediction.wait_s + prediction.prefill_s;

/** One sentence on a decision; `name` shortens a replica's. */
export function explained({ chosen, reason, runner_up: other, candidates }, name) {
  const rival = other ? name(other.replica) : "";
  switch (reason) {
    case "only":
      return "The only replica that could take it.";
    case "cached":
      return `Holds ${long(chosen.hit_tokens)} tokens of it; ${rival} ${other.hit_tokens ? long(other.hit_tokens) : "none"}.`;
    case "wait":
      return `Free ${chosen.wait_s > 0.0005 ? `in ${duration(chosen.wait_s)}` : "at once"}; ${rival} in ${duration(other.wait_s)}.`;
    case "cost":
      return delay(other) === null
        ? `Least work of ${candidates}; ${rival} is next.`
        : `Least work of ${candidates}; ${rival} would take ${duration(delay(other))}.`;
    case "tie":
      return `As good as ${rival}: chance decided.`;
    default:
      return `As the policy has it; ${rival} would cost less.`;
  }
}

function expected(chosen) {
  if (delay(chosen) === null) return "";
  return `expects ${duration(delay(chosen))}${chosen.wait_s > 0.0005 ? `, ${duration(chosen.wait_s)} waiting` : ""}`;
}

/** Bring the list up to date, the latest first. */
export function showDecisions(snapshot) {
  const ids = snapshot.replicas.map((each) => each.id);
  const names = new Map(shortNames(ids).map((shortened, index) => [ids[index], shortened]));
  const name = (id) => names.get(id) ?? id;
  const made = snapshot.decisions.slice(-MOST).reverse();
  at("decisions-empty").hidden = made.length > 0;
  rows(at("decisions"), made, row, (node, each) => {
    const { decision } = each;
    const hit = decision.chosen.hit_tokens;
    put(part(node, "ago"), ago(each.ago_s));
    put(part(node, "replica"), name(decision.chosen.replica));
    put(part(node, "reason"), decision.reason);
    mark(part(node, "reason"), "data-reason", decision.reason);
    const share = hit === null || !each.prompt_tokens ? 0 : Math.min(hit / each.prompt_tokens, 1);
    part(node, "cached").style.width = `${(share * 100).toFixed(1)}%`;
    put(part(node, "prompt"), `${short(each.prompt_tokens)} tok`);
    mark(node, "title", `#${each.number} ${each.model}${each.tenant ? `, ${each.tenant}` : ""}, to ${decision.chosen.replica}`);
    put(part(node, "expected"), expected(decision.chosen));
    put(part(node, "why"), (each.tenant ? `${each.tenant}: ` : "") + explained(decision, name));
  });
}
