// A prompt or a chat, answered in a stream by the gateway's OpenAI interface.

import { ask, events, read } from "./api.js";
import { h } from "./dom.js";
import { duration, plural } from "./format.js";
import { jobAddress } from "./overview.js";

export function playground(main, words, signal) {
  const form = blank();
  const { model, mode, limit, heat, text, send, stop, clear } = form.elements;
  const said = h("p", { id: "said", role: "status" });
  const talk = h("div", { id: "talk" });
  main.append(h("h1", { tabindex: -1 }, "Playground"), form, said, talk);

  let turns = []; // of a chat, as the model is told them
  let served = []; // models that can be asked
  let known = null; // queues with live workers when they were read
  let running = null; // the answer that is being streamed

  async function answer() {
    const isChat = mode.value === "chat";
    if (!isChat) forget();
    turns.push({ role: "user", content: text.value });
    talk.append(turn("user", text.value));
    const node = document.createTextNode("");
    talk.append(turn("assistant", node));
    const question = isChat ? { messages: turns } : { prompt: text.value };
    const body = {
      model: model.value, max_tokens: limit.valueAsNumber, temperature: heat.valueAsNumber,
      stream: true, return_token_ids: true, ...question,
    };
    running = { abort: new AbortController(), pace: new Pace() };
    said.replaceChildren(running.pace.told());
    stop.disabled = !(send.disabled = true);
    try {
      const path = isChat ? "v1/chat/completions" : "v1/completions";
      const response = await ask(path, { body, signal: running.abort.signal });
      if (isChat) text.value = "";
      for await (const event of events(response)) {
        if (event.error) throw new Error(event.error.message);
        node.appendData(textOf(event));
        running.pace.take(event);
        said.replaceChildren(running.pace.told());
      }
      said.replaceChildren(running.pace.told(), " · ", link());
    } catch (error) {
      const why = error.name === "AbortError" ? "Stopped." : error.message;
      said.replaceChildren(why, running.pace.id ? " " : "", running.pace.id ? link() : "");
    }
    if (node.data) turns.push({ role: "assistant", content: node.data });
    else turns.pop();
    running = null;
    stop.disabled = !(send.disabled = false);
  }

  const link = () => h("a", { href: jobAddress(model.value, running.pace.id) }, "its timeline");

  /** End the answer and its job: at once where its id is known, else when the gateway notices. */
  function end() {
    if (!running) return;
    running.abort.abort();
    const { id } = running.pace;
    if (id) {
      ask(`dashboard/api/jobs/${encodeURIComponent(id)}/cancel`, { body: {} }).catch((error) => {
        said.append(` ${error.message}`);
      });
    }
  }

  function forget() {
    turns = [];
    talk.replaceChildren();
    said.replaceChildren();
  }

  async function load() {
    try {
      served = (await read("v1/models", { signal })).data;
    } catch (error) {
      known = null;
      if (!signal.aborted) said.textContent = error.message;
      return;
    }
    const chosen = model.value;
    model.replaceChildren(...served.map(({ id }) => h("option", { selected: id === chosen }, id)));
    send.disabled = !served.length;
    if (!served.length) said.textContent = "No live worker serves a model.";
    choose();
  }

  function choose() {
    const one = served.find(({ id }) => id === model.value);
    if (!one) return;
    limit.max = one.max_model_len;
    mode.options.namedItem("chat").disabled = !one.has_chat_template;
    if (!one.has_chat_template) mode.value = "prompt";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) answer();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  model.addEventListener("change", choose);
  stop.addEventListener("click", end);
  clear.addEventListener("click", forget);
  signal.addEventListener("abort", end);

  return (live) => {
    const alive = live.workers.filter(({ worker }) => worker.is_alive);
    const names = alive.map(({ queue }) => queue.name).join();
    if (names === known || running) return;
    known = names;
    load();
  };
}

function blank() {
  const label = (name, field) => h("label", null, name, field);
  return h("form", { class: "stack" },
    h("div", { class: "line" },
      label("Model", h("select", { name: "model" })),
      label("Mode", h("select", { name: "mode" },
        h("option", { value: "prompt" }, "Prompt"),
        h("option", { value: "chat", id: "chat" }, "Chat"))),
      label("Max tokens", h("input", { name: "limit", type: "number", min: 1, value: 128, required: true })),
      label("Temperature", h("input", {
        name: "heat", type: "number", min: 0, max: 2, step: 0.1, value: 0.7, required: true,
      }))),
    label("Text", h("textarea", { name: "text", rows: 4, required: true })),
    h("div", { class: "line" },
      h("button", { name: "send", class: "main", disabled: true }, "Send"),
      h("button", { name: "stop", type: "button", disabled: true }, "Stop"),
      h("button", { name: "clear", type: "button" }, "Clear"),
      h("span", { class: "hint" }, "Ctrl+Enter sends")));
}

const turn = (role, content) => h("p", { class: `turn ${role}` }, content);

function textOf({ choices: [choice] }) {
  return choice?.delta?.content ?? choice?.text ?? "";
}

/** How fast an answer comes, as its reader sees it. */
class Pace {
  id = null;
  #tokens = 0;
  #began = performance.now();
  #first = null;
  #last = null;

  take({ id, choices: [choice] }) {
    this.id = id;
    const tokens = choice?.token_ids?.length ?? 0;
    if (!tokens) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#tokens += tokens;
  }

  told() {
    if (!this.#tokens) return "Waiting for the first token";
    const parts = [plural(this.#tokens, "token"), `the first after ${duration(this.#first - this.#began)}`];
    const elapsed_s = (this.#last - this.#first) / 1000;
    if (elapsed_s > 0) parts.splice(1, 0, `${((this.#tokens - 1) / elapsed_s).toFixed(1)} tokens/s`);
    return parts.join(" · ");
  }
}
