// Where one job's time went, from its acceptance to its last token. What it was asked is not shown.

import { read } from "./api.js";
import { figure, h, table } from "./dom.js";
import { clock, count, duration } from "./format.js";

export function job(main, [id = "", queue], signal) {
  const field = h("input", { id: "job-id", value: id, required: true, spellcheck: "false" });
  const found = h("div", { id: "found" });
  const go = (event) => {
    event.preventDefault();
    const address = `#/job/${encodeURIComponent(field.value.trim())}`;
    if (location.hash === address) look();
    else location.hash = address;
  };
  let isOver = !id;
  let isLooking = false;

  async function look() {
    isLooking = true;
    try {
      const where = queue ? `?queue=${encodeURIComponent(queue)}` : "";
      const { jobs } = await read(`dashboard/api/jobs/${encodeURIComponent(id)}${where}`, { signal });
      isOver = jobs.every((one) => one.finished_ms);
      found.replaceChildren(...jobs.map(picture));
    } catch (error) {
      if (signal.aborted) return;
      isOver = error.status < 500;
      found.replaceChildren(h("p", { class: "none", role: "alert" }, error.message));
    } finally {
      isLooking = false;
    }
  }

  main.append(
    h("h1", { tabindex: -1 }, "Jobs"),
    h("form", { class: "line", submit: go },
      h("label", { for: "job-id" }, "Job id"), field, h("button", { class: "main" }, "Show")),
    found);
  return () => {
    if (!isOver && !isLooking) look();
  };
}

function picture(one) {
  return h("section", { class: "job" },
    h("h2", null, one.id),
    h("p", null, h("span", { class: `state ${TONES[one.state] ?? ""}` }, one.state),
      [one.reason, one.error, one.message].filter(Boolean).map((why) => ` · ${why}`)),
    h("p", { class: "hint" }, place(one).join(" · ")),
    phases(one),
    h("dl", { class: "figures" }, facts(one).map(([name, value]) => figure(name, value))),
    h("h3", null, "Moments"),
    table("Moments", [["moment"], ["time"], ["after", "number"]], moments(one)));
}

const TONES = { done: "good", running: "good", queued: "warn", failed: "bad", dead: "bad" };

function phases(one) {
  const [begin, end] = [one.queued_ms, Math.max(one.finished_ms ?? one.at_ms, one.queued_ms + 1)];
  const scale = 1000 / (end - begin);
  const told = one.phases.map(([name, from, to]) => `${name} ${duration(to - from)}`);
  return h("figure", { class: "phases" },
    h("svg", { viewBox: "0 0 1000 24", preserveAspectRatio: "none", role: "img", "aria-label": told.join(", ") },
      one.phases.map(([name, from, to]) => h("rect", {
        class: name, x: (from - begin) * scale, width: Math.max((to - from) * scale, 2), height: 24,
      }))),
    h("figcaption", null, h("ul", { class: "legend" }, one.phases.map(([name], at) =>
      h("li", null, h("i", { class: name }), told[at])))));
}

function place(one) {
  const { queue, lane, tenant, worker, crashes } = one;
  const where = [`queue ${queue}`, `lane ${lane}`, `tenant ${tenant}`];
  if (worker) where.push(`worker ${worker}`);
  if (crashes) where.push(`crashes ${crashes}`);
  return where;
}

function facts(one) {
  const end_ms = one.finished_ms ?? one.at_ms;
  const decode_s = (end_ms - one.first_token_ms) / 1000;
  const hasRate = one.first_token_ms && one.output_tokens > 1 && decode_s > 0;
  return [
    ["in all", duration(end_ms - one.queued_ms)],
    ["output tokens", count(one.output_tokens)],
    ["tokens/s", hasRate ? ((one.output_tokens - 1) / decode_s).toFixed(1) : "–"],
    ["prompt tokens", one.usage.prompt_tokens ? count(one.usage.prompt_tokens) : "–"],
    ["of those cached", count(one.usage.cached_tokens)],
  ];
}

function moments(one) {
  const last = one.state === "done" ? "last token" : `ended: ${one.reason || one.state}`;
  const takenOver = one.claims.length > 1 ? `, for the ${one.claims.length}th time` : "";
  const rows = [
    ["accepted", one.queued_ms],
    [`claimed${takenOver}`, one.claimed_ms],
    ["first token", one.first_token_ms],
    [last, one.finished_ms],
  ].filter(([, ms]) => ms);
  rows.sort(([, ms], [, other]) => ms - other);
  return rows.map(([name, ms]) => [name, clock(ms), `+ ${duration(ms - one.queued_ms)}`]);
}
