// Elements from data. Strings become text nodes and nothing is parsed as HTML, so a name or an
// error of a job can say what it likes.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "rect", "polyline", "polygon"]);

/** h("a", {href: "#/"}, "text", child): an element; functions among the attributes are listeners. */
export function h(tag, attributes, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/**
 * Make `old` look like `fresh` with the fewest changes, so that focus, selection and scroll
 * positions outlive a refresh. Old nodes keep their listeners: what is morphed should have none.
 */
export function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((child, at) => (before[at] ? morph(before[at], child) : old.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

/** A table; a column is [title, kind], and its kind (`number`, `extra`) a class of its cells. */
export function table(caption, columns, rows) {
  const cell = (tag, content, kind) =>
    h(tag, { class: kind, scope: tag === "th" ? "col" : null }, content);
  return h("div", { class: "scroll" },
    h("table", null,
      h("caption", { class: "unseen" }, caption),
      h("thead", null, h("tr", null, columns.map(([title, kind]) => cell("th", title, kind)))),
      h("tbody", null, rows.map((row) =>
        h("tr", null, row.map((content, at) => cell("td", content, columns[at][1])))))));
}

/** One figure with its name. */
export function figure(name, value, tone) {
  return h("div", { class: "figure" }, h("dt", null, name), h("dd", { class: tone }, value));
}

/** A share from 0 to 1, as a bar with a label; `limits` say from where on it is too much. */
export function bar(share, label, limits = {}) {
  const value = share.toFixed(3);
  return h("span", { class: "bar" }, h("meter", { min: 0, max: 1, value, ...limits }), label);
}

/** The curve of `values`, the newest at the right edge of `places`. */
export function curve(values, places, label) {
  const most = Math.max(...values, 1e-9);
  const shift = places - values.length;
  const points = values.map((one, at) => `${shift + at},${(30 - (29 * one) / most).toFixed(2)}`);
  const ground = [`${places - 1},30`, `${shift},30`];
  return h("svg", {
    class: "curve", viewBox: `0 0 ${places - 1} 30`, preserveAspectRatio: "none",
    role: "img", "aria-label": label,
  }, h("polygon", { points: [...points, ...ground].join(" ") }),
  h("polyline", { points: points.join(" ") }));
}
