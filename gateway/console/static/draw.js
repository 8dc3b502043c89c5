// Lines and steps over the last minutes, as SVG. A gap in what is known is a gap in the line.

import { svg } from "./dom.js";

const WIDTH = 300;

const x = (place) => (WIDTH * place).toFixed(1);

/** Runs of known values. */
function runs(series) {
  const found = [];
  let run = null;
  for (const [place, value] of series) {
    if (value === null) run = null;
    else if (run === null) found.push((run = [[place, value]]));
    else run.push([place, value]);
  }
  return found;
}

/** A drawing that others put lines into: `height` units high, seen by nobody who cannot see. */
export function canvas(height, extra = {}) {
  return svg("svg", {
    viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true", ...extra,
  });
}

/** The highest value of some series, at least `least`. */
export function highest(all, least = 0) {
  let most = least;
  for (const series of all) {
    for (const [, value] of series) if (value !== null && value > most) most = value;
  }
  return most;
}

/** The path of a line, in a box `height` high whose top is `most`. */
export function line(series, height, most) {
  const y = (value) => (height - 2 - (height - 4) * (most ? value / most : 0)).toFixed(1);
  return runs(series).map((run) => run.map(([place, value], index) =>
    `${index ? "L" : "M"}${x(place)} ${y(value)}`).join("")).join("");
}

/** The same, closed down to the ground. */
export function area(series, height, most) {
  const y = (value) => (height - 2 - (height - 4) * (most ? value / most : 0)).toFixed(1);
  return runs(series).map((run) => `M${x(run[0][0])} ${height}` + run.map(([place, value]) =>
    `L${x(place)} ${y(value)}`).join("") + `L${x(run.at(-1)[0])} ${height}Z`).join("");
}

/** Values that hold until the next: [place, value] at every corner. */
export function stepped(series) {
  const corners = [];
  series.forEach(([place, value], index) => {
    if (index && series[index - 1][1] !== null) corners.push([place, series[index - 1][1]]);
    corners.push([place, value]);
  });
  return corners;
}
