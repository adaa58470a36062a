// Which view is shown, and the reading of the queues once a second that all views share.
//
// A view is a function of (main, the words of its address, a signal that ends with it). It fills
// `main`, and may return a function that is called with every reading.

import { key, read } from "./api.js";
import { dead } from "./dead.js";
import { count } from "./format.js";
import { job } from "./job.js";
import { Live } from "./live.js";
import { overview } from "./overview.js";
import { playground } from "./playground.js";
import { worker } from "./worker.js";

const VIEWS = { worker, job, dead, playground };
const READ_EVERY_MS = 1000;
const PATIENCE_MS = 10_000;

const byId = (id) => document.getElementById(id);
const live = new Live();
let update = null;
let shown = new AbortController();

function show() {
  shown.abort();
  shown = new AbortController();
  const [name, ...words] = location.hash.slice(2).split("/").map(decodeURIComponent);
  const main = byId("main");
  main.replaceChildren();
  update = (VIEWS[name] ?? overview)(main, words, shown.signal);
  if (live.isRead) update?.(live);
  for (const link of document.querySelectorAll("nav a")) {
    const isCurrent = link.hash === `#/${VIEWS[name] && name !== "worker" ? name : ""}`;
    link.ariaCurrent = isCurrent ? "page" : null;
    if (isCurrent) document.title = `${link.firstChild.data} · pagestream`;
  }
}

async function readOnce() {
  const signal = AbortSignal.timeout(PATIENCE_MS);
  try {
    live.take(await read("dashboard/api/live", { signal }));
    trouble("");
  } catch (error) {
    if (error.status === 401) await askForKey(error.message);
    else trouble(`Nothing newer can be read. ${error.message}`);
    return;
  }
  byId("leave").hidden = !key.get();
  byId("dead-count").hidden = !live.deadLetters;
  byId("dead-count").textContent = count(live.deadLetters);
  update?.(live);
}

async function keepReading() {
  for (;;) {
    await readOnce();
    await new Promise((resolve) => setTimeout(resolve, READ_EVERY_MS));
    if (document.hidden) {
      await new Promise((seen) => addEventListener("visibilitychange", seen, { once: true }));
    }
  }
}

function trouble(message) {
  byId("trouble").textContent = message;
  byId("trouble").hidden = !message;
}

/** Ask until there is a key; whether it is a good one the next reading says. */
async function askForKey(message) {
  const dialog = byId("key-dialog");
  byId("key-message").textContent = key.get() ? message : "This gateway wants one.";
  byId("key").value = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (byId("key").value) key.set(byId("key").value);
  show();
}

byId("leave").addEventListener("click", () => {
  key.forget();
  location.reload();
});
addEventListener("hashchange", () => {
  show();
  byId("main").querySelector("h1")?.focus();
});
show();
keepReading();
