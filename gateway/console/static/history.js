// What the last minutes were like: the gateway tells sums since its start, and this makes rates,
// shares and percentiles out of two of them.

const WINDOW_S = 180;
const LEAST_WINDOW_S = 20;
const LATELY_S = 10;

/** The quantile of observations between two distributions, read off inside its bucket. */
export function quantile(bounds, counts, earlier, q) {
  const fresh = counts.map((count, index) => count - (earlier ? earlier[index] : 0));
  const total = fresh.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  let before = 0;
  for (let index = 0; index < fresh.length; index += 1) {
    if (fresh[index] > 0 && before + fresh[index] >= q * total) {
      const low = index > 0 ? bounds[index - 1] : 0;
      const high = index < bounds.length ? bounds[index] : low;
      return low + (high - low) * ((q * total - before) / fresh[index]);
    }
    before += fresh[index];
  }
  return null;
}

/** Distributions of all models in one; null where there is none. */
function merged(meters, name) {
  let sums = null;
  for (const each of meters) {
    const { bounds, counts } = each[name];
    if (sums === null) sums = { bounds, counts: [...counts] };
    else counts.forEach((count, index) => { sums.counts[index] += count; });
  }
  return sums;
}

const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);

/** Snapshots of late, as points of what is drawn. */
export class History {
  constructor() {
    this.points = [];
  }

  /** One more; a gateway that has started anew, or another worker, begins a new history. */
  add(snapshot) {
    const last = this.points.at(-1);
    if (last && (snapshot.at < last.at || snapshot.received < last.received || String(snapshot.worker) !== last.worker)) {
      this.points = [];
    }
    const point = this.#point(snapshot);
    this.points.push(point);
    while (this.points[0].at < snapshot.at - WINDOW_S - LATELY_S) this.points.shift();
    return point;
  }

  #point(snapshot) {
    const { at, received, meters, demand } = snapshot;
    const point = {
      at,
      received,
      worker: String(snapshot.worker),
      output: sum(meters, (each) => each.output_tokens),
      prompt: sum(meters, (each) => each.prompt_tokens),
      cached: sum(meters, (each) => each.cached_tokens),
      ttft: merged(meters, "ttft_s"),
      itl: merged(meters, "inter_token_s"),
      inflight: sum(snapshot.replicas, (each) => each.inflight),
      open: snapshot.open_requests,
      failed: (snapshot.outcomes.failed ?? 0) + (snapshot.outcomes.evicted ?? 0),
      waiting: sum(demand, (each) => each.queued_requests),
      demand: new Map(demand.map((each) => [each.model, each])),
    };
    const earlier = this.#before(at - LATELY_S);
    const span = earlier ? at - earlier.at : 0;
    point.requestsPerS = span ? (received - earlier.received) / span : null;
    point.chunksPerS = span ? (observed(point.itl) - observed(earlier.itl)) / span : null;
    const read = earlier ? point.prompt - earlier.prompt : 0;
    point.hitShare = read > 0 ? (point.cached - earlier.cached) / read : null;
    point.ttft50 = latency(point.ttft, earlier && earlier.ttft, 0.5, span);
    point.ttft95 = latency(point.ttft, earlier && earlier.ttft, 0.95, span);
    point.itl50 = latency(point.itl, earlier && earlier.itl, 0.5, span);
    point.itl95 = latency(point.itl, earlier && earlier.itl, 0.95, span);
    return point;
  }

  /** The last point at or before an instant, else the first there is. */
  #before(instant) {
    let found = this.points[0] ?? null;
    for (const point of this.points) {
      if (point.at > instant) break;
      found = point;
    }
    return found;
  }

  /** How far back drawings go: as far as is known, within bounds. */
  get window() {
    const known = this.points.length ? this.points.at(-1).at - this.points[0].at : 0;
    return Math.min(Math.max(known, LEAST_WINDOW_S), WINDOW_S);
  }

  /** One figure over the window: [place from 0, its beginning, to 1, now; value or null]. */
  series(of) {
    const [now, window] = [this.points.at(-1)?.at ?? 0, this.window];
    return this.points.map((point) => [1 - (now - point.at) / window, of(point) ?? null])
      .filter(([place]) => place >= 0);
  }
}

/** How many observations a distribution has. */
const observed = (distribution) => (distribution ? sum(distribution.counts, (count) => count) : 0);

function latency(now, earlier, q, span) {
  return now && span ? quantile(now.bounds, now.counts, earlier && earlier.counts, q) : null;
}
