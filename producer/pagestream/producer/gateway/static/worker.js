// One worker: its batch, its counters, and the blocks of its KV cache.

import { figure, h, morph } from "./dom.js";
import { count, duration, percent, plural } from "./format.js";
import { batch, chart, kvBar, slowest, state } from "./overview.js";

const BLOCKS = { u: "used by one request", s: "shared by several", c: "cached prefix", ".": "free" };
const CLASSES = { u: "used", s: "shared", c: "cached", ".": "free" };

export function worker(main, [queueName, workerName]) {
  return (live) => {
    const found = live.workers.filter(
      ({ queue, worker }) => queue.name === queueName && worker.name === workerName);
    morph(main, h("main", { id: "main" },
      h("h1", { tabindex: -1 }, workerName ?? "Worker"),
      found.length ? found.map((one) => picture(live, one))
        : h("p", { class: "none" }, "There is no such worker, or it has left.")));
  };
}

function picture(live, { queue, worker }) {
  const one = worker.snapshot;
  return [
    h("p", null, state(worker), ` serves ${queue.name}`, one && ` on ${one.device}`),
    one ? figures(one) : h("p", { class: "none" }, "It has not said anything of itself lately."),
    one && h("section", null, h("h2", null, "KV cache"), cache(one.kv)),
    h("section", null,
      h("h2", null, "Output tokens a second"), chart(live.rates(queue, worker))),
    h("section", null, h("h2", null, "Slowest requests"), slowest([{ queue, worker }])),
  ];
}

function figures(one) {
  const hits = one.prefix_query_tokens ? one.prefix_hit_tokens / one.prefix_query_tokens : 0;
  const ended = Object.entries(one.finished).map(([reason, jobs]) => `${count(jobs)} ${reason}`);
  return h("dl", { class: "figures" },
    figure("batch", batch(one)),
    figure("waiting here", count(one.waiting)),
    figure("output tokens/s", count(one.decode_tokens_per_s)),
    figure("prompt tokens/s", count(one.prefill_tokens_per_s)),
    figure("steps/s", count(one.steps_per_s)),
    figure("prefix hits", percent(hits)),
    figure("preemptions", count(one.preemptions)),
    figure("output tokens", count(one.output_tokens)),
    figure("up", duration(one.uptime_s * 1000)),
    figure("jobs ended", ended.join(", ") || "none"));
}

function cache(kv) {
  const told = `${count(kv.used_blocks)} used, ${count(kv.cached_blocks)} cached of `
    + `${plural(kv.total_blocks, "block")} of ${kv.block_tokens} tokens`;
  const every = kv.blocks_per_cell > 1 ? `; the map shows one in ${count(kv.blocks_per_cell)}` : "";
  return [
    h("p", null, kvBar(kv), ` ${told}${every}`),
    kv.block_map
      ? h("div", { class: "map", role: "img", "aria-label": told },
        [...kv.block_map].map((letter) => h("i", { class: CLASSES[letter] })))
      : h("p", { class: "none" }, "The map comes with the first request."),
    h("ul", { class: "legend" }, Object.entries(BLOCKS).map(([letter, meaning]) =>
      h("li", null, h("i", { class: CLASSES[letter] }), meaning))),
  ];
}
