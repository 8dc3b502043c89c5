// Elements, numbers and times: what every panel is made with. Text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; `text` sets its text. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same, of a drawing. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") node.textContent = value;
    else if (value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** The element with this id. */
export const at = (id) => document.getElementById(id);

/** Set text only where it is another: a screen reader's place and a selection stay. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute only where it is another; null takes it away. */
export function mark(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** As many children as items: made by `make` where there are too few, then brought up to date. */
export function rows(parent, items, make, update) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, index) => update(parent.children[index], item, index));
}

/** The part of an element that plays this role in it. */
export const part = (node, name) => node.querySelector(`[data-part="${name}"]`);

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const NONE = "–";

/** 1234567 -> "1.23M". */
export const short = (number) => (number === null || number === undefined ? NONE : compact.format(number));

/** 1234567 -> "1,234,567". */
export const long = (number) => whole.format(number);

/** Seconds in three digits and their unit. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds === 0) return "0 ms";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** How long ago, for people. */
export function ago(seconds) {
  if (seconds < 1) return "now";
  return seconds < 60 ? `${Math.floor(seconds)} s` : `${Math.floor(seconds / 60)} min`;
}

/** Replicas' ids without what all have in common: "host:1", "host:2" -> ":1", ":2". */
export function shortNames(ids) {
  const [first = ""] = ids;
  let common = 0;
  while (ids.length > 1 && common < first.length && ids.every((id) => id[common] === first[common])) common += 1;
  const cut = Math.max(first.lastIndexOf(":", common), first.lastIndexOf(".", common));
  return ids.map((id) => (common && cut > 0 ? id.slice(cut) : id));
}

/** 0.5 -> "50%". */
export const percent = (part) => (part === null ? NONE : `${Math.round(part * 100)}%`);

/** "1 replica", "2 replicas". */
export const count = (number, noun) => `${long(number)} ${noun}${number === 1 ? "" : "s"}`;
