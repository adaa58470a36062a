// The queues as they were last read, and the token rates of the readings before.

import { total } from "./format.js";

export const READINGS = 120; // that curves show

export class Live {
  queues = [];
  isRead = false;
  #rates = new Map();

  take({ queues }) {
    this.queues = queues;
    this.isRead = true;
    const rates = new Map();
    for (const { queue, worker } of this.workers) {
      const rate = worker.snapshot?.decode_tokens_per_s ?? 0;
      const name = `${queue.name} ${worker.name}`;
      rates.set(name, [...this.rates(queue, worker), rate].slice(-READINGS));
    }
    const all = total(this.workers, ({ worker }) => worker.snapshot?.decode_tokens_per_s ?? 0);
    rates.set("", [...this.allRates, all].slice(-READINGS));
    this.#rates = rates;
  }

  /** Every worker, with its queue. */
  get workers() {
    return this.queues.flatMap((queue) => queue.workers.map((worker) => ({ queue, worker })));
  }

  /** Output tokens a second of a worker, oldest first. */
  rates(queue, worker) {
    return this.#rates.get(`${queue.name} ${worker.name}`) ?? [];
  }

  /** Output tokens a second of all workers together. */
  get allRates() {
    return this.#rates.get("") ?? [];
  }

  get deadLetters() {
    return total(this.queues, (queue) => queue.dead_letters);
  }
}
