// Small things for making the page's elements.

/** An element with attributes (functions are listeners) and children. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, '');
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A canvas for `width` x `height` CSS pixels, sharp on this screen; returns its context, cleared. */
export function prepare(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** A number in few characters. */
export function short(x, digits = 4) {
  if (x === -Infinity) return '−∞';
  const text = x.toFixed(digits);
  return (x < 0 ? '−' : '') + text.replace('-', '');
}

/** A small number, such as 3e-8. */
export function tiny(x) {
  return x === 0 ? '0' : x.toExponential(0);
}

/** Text cut to fit `width` in the context's font. */
export function cut(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}

/** Milliseconds of work per frame, so that scrolling stays smooth. */
export const SLICE = 10;

/** Calls `step` again in the next frame as long as it returns true; `key` replaces earlier work of the same key. */
const work = new Map();
export function inSlices(key, step) {
  cancelAnimationFrame(work.get(key));
  const next = () => {
    if (step()) work.set(key, requestAnimationFrame(next));
    else work.delete(key);
  };
  next();
}

/** A box that scrolls over something larger than itself; the canvas in it shows the part that is visible. */
export function scrollBox(label, onScroll) {
  const canvas = el('canvas');
  const spacer = el('div', { class: 'spacer' }, canvas);
  const box = el('div', { class: 'scroll', tabindex: '0', role: 'img', 'aria-label': label, scroll: onScroll }, spacer);
  return { box, spacer, canvas };
}

/** Bars with a word and a number each. */
export function bars(rows) {
  const largest = Math.max(...rows.map((row) => row.value), 1e-9);
  return el('ol', { class: 'bars' }, ...rows.map((row) => el('li', { class: row.class ?? '' },
    el('span', { class: 'word' }, row.text),
    el('span', { class: 'track' }, el('span', { class: 'bar', style: `width:${(100 * row.value) / largest}%` })),
    el('span', { class: 'value' }, row.label ?? short(row.value, 3)))));
}
