// Server-sent events by fetch, which unlike EventSource can show a key; and again, when it ends.

const FIRST_PAUSE_S = 0.5;
const LONGEST_PAUSE_S = 15;

/** Events of a body: the data of each. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

/** What a refusal says of itself. */
export async function refusal(response) {
  try {
    const { error } = await response.json();
    return error.message;
  } catch {
    return `The gateway answered ${response.status}.`;
  }
}

/** A stream that is kept open. `on` has snapshot(document), state(name, text) and locked(text). */
export class Stream {
  #on;
  #key = "";
  #abort = null;
  #wake = null;

  constructor(on) {
    this.#on = on;
  }

  /** Another key, or none: connect anew with it. */
  use(key) {
    this.#key = key;
    this.#abort?.abort();
    this.#wake?.();
  }

  /** Connect, and again whenever it ends. */
  async run() {
    let pause = FIRST_PAUSE_S;
    for (;;) {
      this.#abort = new AbortController();
      const outcome = await this.#once(() => { pause = FIRST_PAUSE_S; });
      if (outcome === "locked") {
        await new Promise((resolve) => { this.#wake = resolve; });
        continue;
      }
      if (this.#abort.signal.aborted) continue;
      await this.#sleep(pause, outcome);
      pause = Math.min(pause * 2, LONGEST_PAUSE_S);
    }
  }

  /** One connection; says why it ended. */
  async #once(received) {
    this.#on.state("connecting", "Connecting");
    try {
      const headers = this.#key ? { authorization: `Bearer ${this.#key}` } : {};
      const response = await fetch("/console/events", { headers, signal: this.#abort.signal, cache: "no-store" });
      if (response.status === 401) {
        this.#on.state("locked", "A key is needed");
        this.#on.locked(this.#key ? "That key is not valid here." : "");
        return "locked";
      }
      if (!response.ok) return await refusal(response);
      for await (const data of events(response.body)) {
        received();
        this.#on.state("live", "Live");
        this.#on.snapshot(JSON.parse(data));
      }
      return "The gateway has closed the connection.";
    } catch (error) {
      return error instanceof SyntaxError ? "What the gateway sent could not be read." : "The gateway cannot be reached.";
    }
  }

  async #sleep(seconds, why) {
    for (let left = seconds; left > 0; left -= 0.5) {
      this.#on.state("lost", `Again in ${Math.ceil(left)} s`, why);
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 500);
      });
    }
  }
}
