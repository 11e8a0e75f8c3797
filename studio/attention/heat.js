// A heat map that draws only what is visible: rows are the words that look, columns the words that are looked at.
import { state } from './data.js';
import { changeColour, css, styleColour, weightColour } from './colour.js';
import { cut, el, inSlices, prepare, scrollBox, short, SLICE } from './dom.js';

let heatMaps = 0;
const gutters = new WeakMap();

/** Room for the longest of the labels; of long texts, where few are seen at a time, as much as is ever given. */
function gutterFor(rows, columns) {
  if (!gutters.has(rows)) {
    const longest = rows.length > 200 ? 20 : Math.max(...[...rows, ...columns].map((token) => token.text.length));
    gutters.set(rows, Math.min(110, 18 + longest * 8));
  }
  return gutters.get(rows);
}

/**
 * A heat map's element and how to draw it. `source()` gives `{ matrix, rows, columns, change, row, word }`: a matrix as in
 * data.js or null, the tokens of its sides, whether it shows differences, the row to mark, and what a cell means in words.
 * `pick(i, j)` is called when a cell is chosen.
 */
export function makeHeat(label, source, pick, tallest = 640) {
  const name = `heat ${heatMaps++}`;
  const { box, spacer, canvas } = scrollBox(label, () => draw());
  const zoom = el('input', { type: 'range', min: 0, max: 100, value: 0, 'aria-label': `${label}: zoom`, input: () => draw() });
  const out = el('output', { class: 'readout' });
  const tools = el('div', { class: 'tools' }, el('label', {}, 'Zoom ', zoom), out);
  const element = el('div', { class: 'heat' }, box, tools);
  let layout = null;
  let kept = null;

  const cellAt = (event) => {
    if (!layout) return null;
    const bounds = canvas.getBoundingClientRect();
    const j = Math.floor((event.clientX - bounds.left - layout.left + box.scrollLeft) / layout.cell);
    const i = Math.floor((event.clientY - bounds.top - layout.top + box.scrollTop) / layout.cell);
    return i >= 0 && j >= 0 && i < layout.rows && j < layout.columns ? [i, j] : null;
  };
  const tell = (at) => {
    const { matrix, rows, columns, word } = source();
    if (!at || !matrix) out.value = '';
    else out.value = `“${rows[at[0]].text}” ${word ?? 'looks at'} “${columns[at[1]].text}”: ${short(matrix.row(at[0])[at[1]])}`;
  };
  canvas.addEventListener('pointermove', (event) => tell(cellAt(event)));
  canvas.addEventListener('pointerleave', () => tell(null));
  canvas.addEventListener('click', (event) => {
    const at = cellAt(event);
    if (at && pick) pick(...at);
  });

  function draw() {
    const { matrix, rows, columns } = source();
    const width = element.clientWidth;
    element.classList.toggle('empty', !matrix);
    if (width === 0 || !matrix) return;
    const least = Math.min(0.5, (width - 20) / columns.length);
    const gutter = Math.min(gutterFor(rows, columns), Math.round(width * 0.24));
    const fit = Math.min(30, Math.max(least, (width - gutter - 2) / columns.length));
    const cell = fit * (Math.max(30, fit) / fit) ** (zoom.value / 100);
    const labelled = cell >= 9;
    const [left, top] = labelled ? [gutter, gutter] : [4, 4];
    layout = { cell, left, top, rows: rows.length, columns: columns.length, labelled };
    const [w, h] = [left + columns.length * cell, top + rows.length * cell];
    const height = Math.min(h + 2, tallest);
    box.style.height = `${height + (w > width + 1 ? 12 : 0)}px`;
    spacer.style.width = `${Math.max(w, box.clientWidth)}px`;
    spacer.style.height = `${h}px`;
    inSlices(name, () => !paint(box.clientWidth, height));
  }

  function paint(width, height) {
    const { matrix, rows, columns, change, row: marked, hidden } = source();
    if (!matrix) return true;
    const { cell, left, top, labelled } = layout;
    const context = prepare(canvas, width, height);
    const [x0, y0] = [box.scrollLeft, box.scrollTop];
    const span = (from, size, edge, count) =>
      [Math.max(0, Math.floor(from / cell)), Math.min(count, Math.ceil((from + size - edge) / cell))];
    const [firstRow, lastRow] = span(y0, height, top, rows.length);
    const [firstColumn, lastColumn] = span(x0, width, left, columns.length);
    const colour = change ? changeColour : weightColour;
    const begun = performance.now();
    let complete = true;
    const rowOf = (i) => {
      const known = matrix.peek(i);
      if (known) return known;
      if (performance.now() - begun > SLICE) complete = false;
      return complete ? matrix.row(i) : null;
    };

    context.save();
    context.beginPath();
    context.rect(left, top, width - left, height - top);
    context.clip();
    if (cell >= 3) {
      const gap = cell >= 12 ? 1 : 0;
      for (let i = firstRow; i < lastRow; i++) {
        const row = rowOf(i);
        if (!row) continue;
        for (let j = firstColumn; j < lastColumn; j++) {
          if (Number.isNaN(row[j])) continue;
          context.fillStyle = css(colour(row[j]));
          context.fillRect(left + j * cell - x0, top + i * cell - y0, Math.ceil(cell) - gap, Math.ceil(cell) - gap);
        }
      }
    } else {
      pixels(rowOf, colour, matrix, { x0, y0, width, height, rows: rows.length, columns: columns.length });
      if (kept) putPixels(context);
    }
    context.strokeStyle = styleColour('--line');
    context.lineWidth = 1;
    context.strokeRect(left - x0 + 0.5, top - y0 + 0.5, columns.length * cell - 1, rows.length * cell - 1);
    if (marked != null && marked >= firstRow && marked < lastRow) {
      context.strokeStyle = styleColour('--accent');
      context.lineWidth = 2;
      context.strokeRect(left - x0 + 1, top + marked * cell - y0, columns.length * cell - 2, Math.max(2, cell - 1));
    }
    context.restore();
    if (labelled) labels(context, { rows, columns, firstRow, lastRow, firstColumn, lastColumn, x0, y0, width, height, marked, hidden });
    return complete;
  }

  /**
   * Cells smaller than three pixels, by the pixel: the largest of those that share one. Lines of pixels that are done are
   * kept, so that a picture that fills over many frames costs no more than one that is drawn at once.
   */
  function pixels(rowOf, colour, matrix, { x0, y0, width, height, rows, columns }) {
    const { cell, left, top } = layout;
    const [w, h] = [Math.floor(Math.min(width - left, columns * cell - x0)), Math.floor(Math.min(height - top, rows * cell - y0))];
    if (w < 1 || h < 1) return;
    const place = [cell, x0, y0, w, h, styleColour('--ground')].join(' ');
    if (kept?.place !== place || kept.matrix !== matrix) {
      kept = { place, matrix, image: new ImageData(w, h), done: new Uint8Array(h) };
    }
    const starts = Int32Array.from({ length: w + 1 }, (_, x) => Math.min(columns, Math.floor((x + x0) / cell)));
    for (let y = 0; y < h; y++) {
      if (kept.done[y]) continue;
      const from = Math.floor((y + y0) / cell);
      const to = Math.min(rows, Math.max(from + 1, Math.floor((y + 1 + y0) / cell)));
      const largest = new Float32Array(w);
      for (let i = from; i < to; i++) {
        const row = rowOf(i);
        if (!row) return;
        for (let x = 0; x < w; x++) {
          const end = Math.max(starts[x] + 1, starts[x + 1]);
          for (let j = starts[x]; j < end; j++) if (Math.abs(row[j]) > Math.abs(largest[x])) largest[x] = row[j];
        }
      }
      for (let x = 0, at = y * w * 4; x < w; x++, at += 4) {
        const rgb = colour(largest[x]);
        kept.image.data[at] = rgb[0];
        kept.image.data[at + 1] = rgb[1];
        kept.image.data[at + 2] = rgb[2];
        kept.image.data[at + 3] = 255;
      }
      kept.done[y] = 1;
    }
  }

  function putPixels(context) {
    const { left, top } = layout;
    const { image } = kept;
    const buffer = new OffscreenCanvas(image.width, image.height);
    buffer.getContext('2d').putImageData(image, 0, 0);
    context.drawImage(buffer, left, top);
  }

  function labels(context, { rows, columns, firstRow, lastRow, firstColumn, lastColumn, x0, y0, width, height, marked, hidden }) {
    const { cell, left, top } = layout;
    context.font = `${Math.min(13, Math.max(10, Math.round(cell * 0.75)))}px system-ui, sans-serif`;
    context.textBaseline = 'middle';
    const ink = (n, isRow) => styleColour(hidden?.has(n) ? '--faint' : isRow && n === marked ? '--accent' : '--ink');
    context.save();
    context.beginPath();
    context.rect(0, top, left, height - top);
    context.clip();
    context.textAlign = 'right';
    for (let i = firstRow; i < lastRow; i++) {
      context.fillStyle = ink(i, true);
      context.fillText(cut(context, rows[i].text, left - 8), left - 5, top + (i + 0.5) * cell - y0);
    }
    context.restore();
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left, top);
    context.clip();
    context.textAlign = 'left';
    for (let j = firstColumn; j < lastColumn; j++) {
      context.save();
      context.translate(left + (j + 0.5) * cell - x0, top - 5);
      context.rotate(-Math.PI / 2);
      context.fillStyle = ink(j, false);
      context.fillText(cut(context, columns[j].text, top - 8), 0, 0);
      context.restore();
    }
    context.restore();
  }

  return { element, draw };
}

/** What the colours mean. */
export function makeLegend(change = false) {
  const canvas = el('canvas');
  const words = change ? ['less', '0', 'more'] : ['0', '0.25', '1'];
  const element = el('div', { class: 'legend', 'aria-hidden': 'true' }, el('span', {}, words[0]), canvas,
    el('span', {}, change ? words[2] : words[2]));
  return {
    element,
    draw: () => {
      const context = prepare(canvas, 120, 10);
      for (let x = 0; x < 120; x++) {
        const at = x / 119;
        const value = change ? Math.sign(at - 0.5) * (2 * at - 1) ** 2 : at * at;
        context.fillStyle = css((change ? changeColour : weightColour)(value));
        context.fillRect(x, 0, 1, 10);
      }
      element.title = `colour follows the square root of the weight; layer ${state.layer}`;
    },
  };
}
