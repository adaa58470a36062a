// Figures as people say them.

export const count = (number) => Math.round(number).toLocaleString("en");
export const percent = (share) => `${Math.round(share * 100)} %`;
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
export const total = (things, of) => things.reduce((sum, one) => sum + of(one), 0);

/** 850 ms, 12.3 s, 4m10s, 3h05m, 2d04h */
export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 100_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  const two = (number) => String(number).padStart(2, "0");
  if (minutes < 60) return `${minutes}m${two(Math.floor(ms / 1000) % 60)}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h${two(minutes % 60)}m`;
  return `${Math.floor(hours / 24)}d${two(hours % 24)}h`;
}

/** The time of day; with the date where it is another day. */
export function clock(ms) {
  const date = new Date(ms);
  const digits = { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 };
  const time = date.toLocaleTimeString("en-GB", digits);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}
