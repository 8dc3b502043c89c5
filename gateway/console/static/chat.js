// One conversation through the gateway, as any client would have it, and what it was like.

import { at, duration, el, put, rows, short } from "./dom.js";
import { events, refusal } from "./stream.js";

const MOST_TOKENS = 512;

/** `replica=a:8000; reason=cached; ...` as an object. */
export function decisionOf(line) {
  return Object.fromEntries((line ?? "").split("; ").map((each) => each.split(/=(.*)/s).slice(0, 2)));
}

function why(decision) {
  const hit = Number(decision.hit_tokens ?? 0);
  const of = decision.prompt_tokens ? ` of about ${decision.prompt_tokens} tokens` : "";
  const other = decision.runner_up ?? "the next";
  return {
    only: "the only one that could",
    cached: `which held ${hit}${of}`,
    wait: `free sooner than ${other}`,
    cost: `the least work${hit ? `, ${hit}${of} cached` : ""}`,
    tie: `as good as ${other}`,
    policy: "as the policy has it",
  }[decision.reason] ?? "";
}

/** The chat box. `key()` is what the visitor has typed, if anything. */
export class Chat {
  #key;
  #messages = [];
  #abort = null;

  constructor(key) {
    this.#key = key;
    at("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#abort) this.#abort.abort();
      else this.#send();
    });
    at("chat-text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.#abort) this.#send();
      }
    });
    at("chat-clear").addEventListener("click", () => {
      this.#abort?.abort();
      this.#messages = [];
      at("chat-log").replaceChildren();
      at("chat-text").focus();
    });
  }

  /** What can be asked for now. */
  offer(models) {
    const select = at("chat-model");
    const [had, names] = [select.value, [...models].sort()];
    if (names.join("\n") === [...select.options].map((each) => each.value).join("\n")) return;
    rows(select, names, () => el("option"), (node, name) => {
      node.value = name;
      put(node, name);
    });
    if (names.includes(had)) select.value = had;
  }

  async #send() {
    const content = at("chat-text").value.trim();
    if (!content) return;
    at("chat-text").value = "";
    const log = at("chat-log");
    if (!this.#messages.length) log.replaceChildren();
    this.#messages.push({ role: "user", content });
    const answer = el("p", { class: "answer" });
    const facts = el("p", { class: "facts", text: "Waiting for the first token" });
    log.append(el("p", { class: "question", text: content }), answer, facts);
    log.setAttribute("aria-busy", "true");
    this.#abort = new AbortController();
    put(at("chat-send"), "Stop");
    log.scrollTop = log.scrollHeight;
    try {
      await this.#answer(answer, facts, log);
    } catch (error) {
      const isStopped = error.name === "AbortError";
      facts.textContent = isStopped ? "Stopped." : error.message;
      facts.classList.toggle("failed", !isStopped);
    } finally {
      this.#abort = null;
      put(at("chat-send"), "Send");
      log.setAttribute("aria-busy", "false");
      if (answer.textContent) this.#messages.push({ role: "assistant", content: answer.textContent });
      else this.#messages.pop();
      log.scrollTop = log.scrollHeight;
    }
  }

  async #answer(answer, facts, log) {
    const [began, key] = [performance.now(), this.#key()];
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      signal: this.#abort.signal,
      headers: {
        "content-type": "application/json",
        "x-headrace-explain": "1",
        ...(key ? { authorization: `Bearer ${key}` } : {}),
      },
      body: JSON.stringify({
        model: at("chat-model").value,
        messages: this.#messages,
        max_tokens: MOST_TOKENS,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error(await refusal(response));
    const decision = decisionOf(response.headers.get("x-headrace-decision"));
    let [first, usage, text] = [null, null, ""];
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const delta = chunk.choices?.[0]?.delta ?? {};
      const more = delta.content || delta.reasoning_content || delta.reasoning || "";
      if (!more) continue;
      first ??= performance.now();
      text += more;
      answer.textContent = text.trimStart();
      log.scrollTop = log.scrollHeight;
    }
    facts.replaceChildren(...summary({ began, first, ended: performance.now(), usage, decision }));
  }
}

function summary({ began, first, ended, usage, decision }) {
  const spoken = [];
  if (first !== null) spoken.push(el("span", { class: "chip", text: `first token ${duration((first - began) / 1000)}` }));
  const tokens = usage?.completion_tokens ?? 0;
  if (first !== null && tokens > 1 && ended > first) {
    spoken.push(el("span", { class: "chip", text: `${short((tokens - 1) / ((ended - first) / 1000))} tokens/s` }));
  }
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached) spoken.push(el("span", { class: "chip", text: `${cached} of ${usage.prompt_tokens} prompt tokens cached` }));
  if (decision.replica) spoken.push(el("span", { class: "by", text: `by ${decision.replica}, ${why(decision)}` }));
  return spoken;
}
