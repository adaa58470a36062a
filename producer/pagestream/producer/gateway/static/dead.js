// Dead letters: jobs that were given up, why, and another try. What they were asked is not shown.

import { ask, read } from "./api.js";
import { h } from "./dom.js";
import { clock, count } from "./format.js";
import { jobAddress } from "./overview.js";

export function dead(main, words, signal) {
  const list = h("div", { id: "letters" });
  const said = h("p", { id: "said", role: "status" });
  let known = null;

  async function load() {
    try {
      const { letters } = await read("dashboard/api/dead", { signal });
      list.replaceChildren(...(letters.length ? letters.map((one) => picture(one, retry))
        : [h("p", { class: "none" }, "No dead letter: no job has been given up.")]));
    } catch (error) {
      if (!signal.aborted) said.textContent = error.message;
    }
  }

  async function retry(letter) {
    if (!(await isSure(letter))) return;
    try {
      await ask("dashboard/api/dead/retry", { body: { queue: letter.queue, letter: letter.letter } });
      said.replaceChildren("Queued again: ",
        h("a", { href: jobAddress(letter.queue, letter.id) }, letter.id));
    } catch (error) {
      said.textContent = error.message;
    }
    await load();
  }

  main.append(h("h1", { tabindex: -1 }, "Dead letters"), said, list);
  return (live) => {
    const numbers = live.queues.map((queue) => queue.dead_letters).join();
    if (numbers !== known) load();
    known = numbers;
  };
}

function picture(letter, retry) {
  const { id, queue, worker, tenant, lane } = letter;
  return h("article", { class: "letter" },
    h("header", null,
      h("h2", null, id ? h("a", { href: jobAddress(queue, id) }, id) : "an entry that was no job"),
      id && h("button", { click: () => retry(letter) }, "Retry")),
    h("p", null, h("span", { class: "state bad" }, letter.reason), ` ${letter.message}`),
    h("p", { class: "hint" }, [
      clock(letter.died_ms), `queue ${queue}`, `lane ${lane}`, `tenant ${tenant}`,
      worker && `worker ${worker}`, letter.crashes && `crashes ${letter.crashes}`,
    ].filter(Boolean).join(" · ")),
    letter.error && h("details", null, h("summary", null, "What the engine said last"),
      h("pre", { tabindex: 0 }, letter.error)));
}

async function isSure(letter) {
  const dialog = document.getElementById("sure");
  document.getElementById("sure-text").textContent =
    `${letter.id} has crashed ${count(letter.crashes)} times. It will run alone; one more crash makes `
    + "it a dead letter again.";
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  return dialog.returnValue === "yes";
}
