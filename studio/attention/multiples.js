// All layers and heads at once, as small pictures.
import { attentionOf, choose, keyTokens, layerOf, matrixOf, queryTokens, state } from './data.js';
import { styleColour, weightColour } from './colour.js';
import { el, inSlices, prepare, SLICE } from './dom.js';

const GUTTER = 26;
const GAP = 5;
/** Heads with more pairs are drawn from the small pictures that came with the data. */
const LIVE_PAIRS = 64 * 64;

/** The view's element and how to draw it. */
export function makeMultiples() {
  const canvas = el('canvas', { tabindex: '0', role: 'application', 'aria-label': 'All layers and heads; arrow keys choose' });
  const out = el('output', { class: 'readout' });
  const element = el('div', { class: 'multiples' }, el('div', { class: 'wide' }, canvas), out);
  let size = 40;
  let drawn = new Map();
  let drawnFor = '';

  const at = (event) => {
    const bounds = canvas.getBoundingClientRect();
    const head = Math.floor((event.clientX - bounds.left - GUTTER) / (size + GAP));
    const layer = Math.floor((event.clientY - bounds.top - GUTTER) / (size + GAP));
    const { layers } = attentionOf(state.run);
    return layer >= 0 && head >= 0 && layer < layers.length && head < layers[layer].heads ? { layer, head } : null;
  };
  canvas.addEventListener('click', (event) => {
    const place = at(event);
    if (place) choose({ layer: place.layer, heads: [place.head] });
  });
  canvas.addEventListener('pointermove', (event) => {
    const place = at(event);
    out.value = place ? `Layer ${place.layer}, Head ${place.head}` : '';
  });
  canvas.addEventListener('keydown', (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const { heads } = attentionOf(state.run).layers[state.layer];
    const head = Math.min(heads - 1, Math.max(0, state.heads[0] + step[1]));
    choose({ layer: state.layer + step[0], heads: [head] });
  });

  function draw() {
    const { layers } = attentionOf(state.run);
    const heads = Math.max(...layers.map((layer) => layer.heads));
    const width = element.clientWidth;
    if (width === 0) return;
    size = Math.max(22, Math.min(72, Math.floor((width - GUTTER) / heads) - GAP));
    const theme = styleColour('--ground');
    const now = `${state.run} ${state.attention} ${size} ${theme}`;
    if (now !== drawnFor) drawn = new Map();
    drawnFor = now;
    inSlices('multiples', () => paint(layers, heads));
  }

  /** Draws the pictures that there are; true while some are missing. */
  function paint(layers, heads) {
    const begun = performance.now();
    const context = prepare(canvas, GUTTER + heads * (size + GAP), GUTTER + layers.length * (size + GAP));
    context.font = '11px system-ui, sans-serif';
    context.fillStyle = styleColour('--faint');
    context.textBaseline = 'middle';
    context.textAlign = 'center';
    let missing = false;
    for (let head = 0; head < heads; head++) context.fillText(head, GUTTER + head * (size + GAP) + size / 2, GUTTER / 2);
    layers.forEach((layer, number) => {
      const y = GUTTER + number * (size + GAP);
      context.fillStyle = styleColour('--faint');
      context.fillText(number, GUTTER / 2 - 2, y + size / 2);
      for (let head = 0; head < layer.heads; head++) {
        const x = GUTTER + head * (size + GAP);
        const name = `${number} ${head}`;
        if (!drawn.has(name) && performance.now() - begun < SLICE) drawn.set(name, picture(number, head));
        const image = drawn.get(name);
        missing ||= !drawn.has(name);
        context.imageSmoothingEnabled = false;
        if (image) context.drawImage(image, x, y, size, size);
        const chosen = number === state.layer && state.heads.includes(head);
        context.strokeStyle = styleColour(chosen ? '--accent' : '--line');
        context.lineWidth = chosen ? 3 : 1;
        context.strokeRect(x - 0.5, y - 0.5, size + 1, size + 1);
      }
    });
    return missing;
  }

  return { element, draw };
}

/** One head, a pixel a pair. */
function picture(number, head) {
  const layer = layerOf(state.run, number);
  const [rows, columns] = [queryTokens(state.run).length, keyTokens(state.run).length];
  const small = rows * columns <= LIVE_PAIRS || !layer.thumbnails;
  const { height, width } = small ? { height: rows, width: columns } : layer.thumbnails;
  const matrix = small ? matrixOf(state.run, number, head) : null;
  if (small && !matrix) return null;
  const image = new ImageData(width, height);
  for (let i = 0; i < height; i++) {
    const row = small ? matrix.row(i) : layer.thumbnails.data.subarray((head * height + i) * width, (head * height + i + 1) * width);
    for (let j = 0; j < width; j++) {
      const [r, g, b] = weightColour(small ? row[j] : row[j] / 255);
      image.data.set([r, g, b, 255], (i * width + j) * 4);
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}
