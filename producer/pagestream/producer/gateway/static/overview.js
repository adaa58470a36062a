// All queues and workers at a glance.

import { bar, curve, figure, h, morph, table } from "./dom.js";
import { count, duration, percent, plural, total } from "./format.js";
import { READINGS } from "./live.js";

export function overview(main) {
  return (live) => morph(main, picture(live));
}

function picture(live) {
  return h("main", { id: "main" },
    h("h1", { tabindex: -1 }, "Overview"),
    figures(live),
    h("section", null, h("h2", null, "Output tokens a second"), chart(live.allRates)),
    h("section", null, h("h2", null, "Queues"), queues(live)),
    h("section", null, h("h2", null, "Workers"), workers(live)),
    h("section", null, h("h2", null, "Slowest requests"), slowest(live.workers)));
}

function figures(live) {
  const lanes = live.queues.flatMap((queue) => queue.lanes);
  const snapshots = live.workers.map(({ worker }) => worker.snapshot).filter(Boolean);
  const oldest = Math.max(0, ...lanes.map((lane) => lane.oldest_ms));
  return h("dl", { class: "figures" },
    figure("waiting", count(total(lanes, (lane) => lane.waiting))),
    figure("running", count(total(lanes, (lane) => lane.running))),
    figure("oldest wait", oldest ? duration(oldest) : "–"),
    figure("output tokens/s", count(total(snapshots, (one) => one.decode_tokens_per_s))),
    figure("prompt tokens/s", count(total(snapshots, (one) => one.prefill_tokens_per_s))),
    figure("workers", count(live.workers.filter(({ worker }) => worker.is_alive).length)),
    figure("dead letters", count(live.deadLetters), live.deadLetters ? "bad" : null));
}

/** A large curve of rates, with its scale. */
export function chart(rates) {
  const most = Math.max(0, ...rates);
  const label = `now ${count(rates.at(-1) ?? 0)}, at most ${count(most)} in the last `
    + plural(rates.length, "reading");
  return h("figure", { class: "chart" }, curve(rates, READINGS, label), h("figcaption", null, label));
}

const QUEUE_COLUMNS = [
  ["queue"], ["lane"], ["waiting", "number"], ["running", "number"], ["oldest wait", "number"],
  ["tenants", "extra number"], ["suspects", "extra number"], ["dead letters", "extra number"],
];

function queues(live) {
  if (!live.queues.length) return h("p", { class: "none" }, "No queue yet: start a worker.");
  const rows = live.queues.flatMap((queue) => queue.lanes.map((lane, at) => {
    const once = (content) => (at === 0 ? content : "");
    return [
      once(h("strong", null, queue.name)), lane.lane, count(lane.waiting), count(lane.running),
      lane.waiting ? duration(lane.oldest_ms) : "–", once(count(queue.tenants.length)),
      once(count(queue.suspects)), once(count(queue.dead_letters)),
    ];
  }));
  return table("Queues and their lanes", QUEUE_COLUMNS, rows);
}

const WORKER_COLUMNS = [
  ["worker"], ["queue", "extra"], ["state"], ["batch"], ["KV cache"],
  ["prompt/s", "extra number"], ["output/s", "number"], ["", "extra"],
];

function workers(live) {
  if (!live.workers.length) return h("p", { class: "none" }, "No worker serves a queue.");
  const rows = live.workers.map(({ queue, worker }) => {
    const one = worker.snapshot;
    return [
      h("a", { href: workerAddress(queue, worker) }, worker.name), queue.name, state(worker),
      one ? bar(one.slots ? one.running / one.slots : 0, batch(one)) : "",
      one ? kvBar(one.kv) : "",
      one ? count(one.prefill_tokens_per_s) : "", one ? count(one.decode_tokens_per_s) : "",
      curve(live.rates(queue, worker), READINGS, "output tokens a second"),
    ];
  });
  return table("Workers", WORKER_COLUMNS, rows);
}

/** What a worker is doing, in a word or two. */
export function state(worker) {
  const one = worker.snapshot;
  const [word, tone] = !worker.is_alive ? ["dead", "bad"]
    : !one ? ["starting", "warn"]
    : one.refuses ? [one.refuses.replace(/^it is /, ""), "warn"]
    : [`up ${duration(one.uptime_s * 1000)}`, "good"];
  return h("span", { class: `state ${tone}` }, word);
}

export const batch = (one) => `${count(one.running)} of ${count(one.slots)}`;

/** How full a KV cache is; a full one makes requests wait, or preempts them. */
export function kvBar(kv) {
  const usage = kv.total_blocks ? kv.used_blocks / kv.total_blocks : 0;
  return bar(usage, percent(usage), { low: 0.8, high: 0.95, optimum: 0 });
}

export const workerAddress = (queue, worker) =>
  `#/worker/${encodeURIComponent(queue.name)}/${encodeURIComponent(worker.name)}`;

export const jobAddress = (queue, id) =>
  `#/job/${encodeURIComponent(id)}/${encodeURIComponent(queue)}`;

const SLOW_COLUMNS = [
  ["job"], ["state"], ["age", "number"], ["prompt tokens", "extra number"],
  ["output tokens", "number"], ["lane", "extra"], ["tenant", "extra"],
];
const SHOWN = 10;

/** The oldest jobs that these workers hold. */
export function slowest(workers) {
  const jobs = workers.flatMap(({ queue, worker }) =>
    (worker.snapshot?.slowest ?? []).map((one) => ({ ...one, queue: queue.name })));
  if (!jobs.length) return h("p", { class: "none" }, "No worker holds a job.");
  jobs.sort((one, other) => other.age_ms - one.age_ms);
  return table("Slowest requests", SLOW_COLUMNS, jobs.slice(0, SHOWN).map((one) => [
    h("a", { href: jobAddress(one.queue, one.id) }, one.id), one.state, duration(one.age_ms),
    count(one.prompt_tokens), count(one.output_tokens), one.lane, one.tenant,
  ]));
}
