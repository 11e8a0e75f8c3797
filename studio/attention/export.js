// Saving what is shown: a drawing as SVG or PNG, numbers as CSV or JSON.
import { attentionOf, keyTokens, layerOf, mainHead, matrixOf, page, queryTokens, state } from './data.js';
import { attend } from './math.js';
import { css, headColour, styleColour, weightColour } from './colour.js';

const MAX_DRAWN_TOKENS = 150;

/** The title of a drawing. */
export function captionText() {
  const heads = state.heads.length === 1 ? `Head ${mainHead()}` : `Heads ${state.heads.join(', ')}`;
  return { title: `Layer ${state.layer}, Attention: ${attentionOf(state.run).name}`, heads };
}

/** The lines and the heat map of the tokens from `first` to before `last`, as SVG. */
export function drawing([first, last]) {
  last = Math.min(last, first + MAX_DRAWN_TOKENS);
  const [queries, keys] = [queryTokens(state.run), keyTokens(state.run)].map((all) => all.slice(first, last));
  const [line, column, gap, cell, top] = [20, 130, 170, 16, 44];
  const [heatX, heatY] = [2 * column + gap + 40 + column, top + column];
  const width = heatX + keys.length * cell + 20;
  const height = Math.max(top + Math.max(queries.length, keys.length) * line, heatY + queries.length * cell) + 20;
  const safe = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const ink = styleColour('--ink');
  const { title, heads } = captionText();
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="100%" height="100%" fill="${styleColour('--ground')}"/>`,
    `<text x="10" y="22" font-size="14" fill="${ink}">${safe(`${title} (${heads})`)}</text>`,
  ];
  const middle = (n) => top + n * line + line / 2;
  for (const head of state.heads) {
    const matrix = matrixOf(state.run, state.layer, head, state.view);
    if (!matrix) continue;
    queries.forEach((_, i) => {
      const row = matrix.row(first + i);
      keys.forEach((__, j) => {
        const weight = row[first + j];
        if (weight < 0.005) return;
        parts.push(`<line x1="${column + 5}" y1="${middle(i)}" x2="${column + gap - 5}" y2="${middle(j)}" stroke="${headColour(head)}" stroke-width="2" stroke-opacity="${weight.toFixed(3)}"/>`);
      });
    });
  }
  const write = (x, y, anchor, text, more = '') =>
    parts.push(`<text x="${x}" y="${y}" text-anchor="${anchor}" fill="${ink}"${more}>${safe(text)}</text>`);
  queries.forEach((token, i) => {
    write(column, middle(i) + 4, 'end', token.text);
    write(heatX - 6, heatY + i * cell + 12, 'end', token.text);
  });
  keys.forEach((token, j) => {
    const [x, y] = [heatX + j * cell + 12, heatY - 6];
    write(column + gap, middle(j) + 4, 'start', token.text);
    write(x, y, 'start', token.text, ` transform="rotate(-90 ${x} ${y})"`);
  });
  const matrix = matrixOf(state.run, state.layer, mainHead(), state.view);
  if (matrix) {
    queries.forEach((_, i) => keys.forEach((__, j) => {
      const weight = matrix.row(first + i)[first + j];
      parts.push(`<rect x="${heatX + j * cell}" y="${heatY + i * cell}" width="${cell}" height="${cell}" fill="${css(weightColour(weight))}"/>`);
    }));
  }
  parts.push('</svg>');
  return parts.join('\n');
}

/** The chosen head's weights, one line per pair. */
export function csvText() {
  const layer = layerOf(state.run, state.layer);
  const head = mainHead();
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = ['run,attention,layer,head,query,query_token,key,key_token,weight,value_norm'];
  queryTokens(state.run).forEach((query, i) => {
    const { weights } = attend(layer, head, i);
    keyTokens(state.run).forEach((key, j) => {
      lines.push([page.runs[state.run].role, attentionOf(state.run).name, state.layer, head, i, quoted(query.text),
        j, quoted(key.text), weights[j].toFixed(9), layer.norms[head * layer.source + j]].join(','));
    });
  });
  return `${lines.join('\n')}\n`;
}

/** The chosen head's weights and weighted sums. */
export function jsonText() {
  const layer = layerOf(state.run, state.layer);
  const head = mainHead();
  const rows = queryTokens(state.run).map((_, i) => attend(layer, head, i));
  const run = page.runs[state.run];
  return JSON.stringify({
    format: page.format,
    model: page.model,
    text: run.text,
    role: run.role,
    attention: attentionOf(state.run).name,
    layer: state.layer,
    head,
    queries: queryTokens(state.run),
    keys: keyTokens(state.run),
    weights: rows.map((row) => Array.from(row.weights)),
    sums: rows.map((row) => Array.from(row.sum)),
    value_norms: Array.from(layer.norms.subarray(head * layer.source, (head + 1) * layer.source)),
  });
}

/** Hands a file to the reader. */
export function save(name, content, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** A drawing as PNG, twice as fine as the screen. */
export async function pngOf(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement('canvas');
  canvas.width = image.width * 2;
  canvas.height = image.height * 2;
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => { canvas.toBlob(resolve, 'image/png'); });
}
