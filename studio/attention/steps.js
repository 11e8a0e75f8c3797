// The six steps of self-attention as live numbers: Vaswani et al. 2017, section 3.2.1.
import { choose, keyTokens, layerOf, mainHead, queryTokens, state } from './data.js';
import { agreementOf, attend, biasAt, vectorsOf } from './math.js';
import { changeColour, css } from './colour.js';
import { el, prepare, short, tiny } from './dom.js';

/** Rows of the table; the largest weights of a longer text. */
const MAX_ROWS = 40;
const agreements = new Map();

/** The view's element and how to fill it. */
export function makeSteps() {
  const element = el('div', { class: 'steps' });
  return { element, draw: () => element.replaceChildren(...fill()) };
}

function fill() {
  const layer = layerOf(state.run, state.layer);
  if (!layer.isWhole) return [el('p', { class: 'absent' }, absent())];
  const head = mainHead();
  const i = state.token;
  const [queries, keys] = [queryTokens(state.run), keyTokens(state.run)];
  const row = attend(layer, head, i);
  const largest = row.weights.reduce((best, weight, j) => (weight > row.weights[best] ? j : best), 0);
  const key = Math.min(state.key ?? largest, keys.length - 1);
  const { q, k, v } = vectorsOf(layer, head, i, key);
  const [from, to] = [`“${queries[i].text}”`, `“${keys[key].text}”`];
  const [score, scaled, weight] = [row.scores[key], row.scaled[key], row.weights[key]];
  const bias = biasAt(layer, head, i, key);
  const divisor = 1 / layer.scale;
  const paper = Math.abs(divisor - Math.sqrt(layer.head_dim)) < 1e-6;
  const product = Array.from(q, (x, n) => x * k[n]);
  const weighted = Array.from(v, (x) => x * weight);
  const step = (n, title, ...content) =>
    el('li', { 'data-step': n }, el('h3', {}, el('span', { class: 'number' }, n), title), ...content);
  const equation = (...parts) => el('p', { class: 'equation' }, ...parts);
  const value = (name, x) => el('b', { 'data-name': name, 'data-value': x }, short(x));
  return [
    el('p', {}, `${from} looks at ${to} (layer ${state.layer}, head ${head}). Choose another word to look at in the table below.`),
    el('ol', { class: 'six' },
      step(1, 'Make query, key and value',
        el('p', {}, `From each word's vector, three matrices make a query, a key and a value of ${layer.head_dim} numbers`
          + `${layer.value_dim === layer.head_dim ? '' : ` (values: ${layer.value_dim})`}.`),
        vector(`q of ${from}`, q), vector(`k of ${to}`, k), vector(`v of ${to}`, v)),
      step(2, 'Score: q · k',
        equation(...terms(q, k), '… = ', value('score', score)),
        vector('q × k, which are summed', product)),
      step(3, `Divide by ${paper ? '√d' : 'the model’s divisor'}`,
        equation(`${short(score)} / ${paper ? `√${layer.head_dim} = ` : ''}${short(score)} / ${short(divisor, 3)} = `,
          layer.soft_cap || bias !== 0 ? short(score * layer.scale) : value('scaled', scaled)),
        layer.soft_cap ? equation(`soft cap: ${layer.soft_cap} · tanh(x / ${layer.soft_cap})`) : null,
        layer.soft_cap || bias !== 0 ? equation(`mask or position bias ${short(bias)}: `, value('scaled', scaled)) : null),
      step(4, 'Softmax over all words',
        equation(`e^(${short(scaled)} − ${short(row.max)}) / ${short(row.total)} = `, value('weight', weight)),
        el('p', {}, 'The largest score is taken away first, which changes nothing but keeps the numbers small. '
          + 'The weights of a row sum to 1.')),
      step(5, 'Weight the values',
        equation(`${short(weight)} × v of ${to}`),
        vector('weight × v', weighted)),
      step(6, 'Sum over all words',
        vector(`the head's output for ${from}`, row.sum, 'sum'),
        check(layer, head))),
    table(layer, head, row, keys, key),
  ];
}

/** What is said where the page has not got a layer's numbers. */
export function absent() {
  return `The text is long, and the numbers of layer ${state.layer} are not in this page. The small pictures show it; `
    + `“conjure explain attention … --layer ${state.layer}” keeps its numbers.`;
}

function terms(q, k) {
  return Array.from({ length: Math.min(3, q.length) }, (_, n) => `${n ? ' + ' : ''}${short(q[n], 2)}·${short(k[n], 2)}`)
    .concat(q.length > 3 ? [' + '] : []);
}

/** A vector as a strip of colours with its first numbers; all of them can be unfolded. */
function vector(name, numbers, test) {
  const canvas = el('canvas', { 'aria-hidden': 'true' });
  const largest = numbers.reduce((most, x) => Math.max(most, Math.abs(x)), 1e-9);
  const context = prepare(canvas, 192, 14);
  const width = 192 / numbers.length;
  numbers.forEach((x, n) => {
    context.fillStyle = css(changeColour(x / largest));
    context.fillRect(n * width, 0, Math.ceil(width), 14);
  });
  const all = Array.from(numbers, (x) => short(x, 3));
  return el('details', { class: 'vector', 'data-name': test },
    el('summary', {}, el('span', { class: 'name' }, name), canvas,
      el('span', { class: 'few' }, `${all.slice(0, 4).join('  ')} …`)),
    el('p', { class: 'all' }, all.join('  ')));
}

function check(layer, head) {
  const name = [state.run, state.attention, state.layer, head].join(' ');
  let found = agreements.get(name);
  if (!found) agreements.set(name, found = agreementOf(layer, head));
  const same = found.weights <= 1e-5;
  return el('p', { class: same ? 'check same' : 'check different', 'data-weights': found.weights, 'data-sums': found.sums },
    `${same ? '✓ Equal to the model' : '✗ Not equal to the model'}: over ${found.rows} recorded `
    + `${found.rows === 1 ? 'row' : 'rows'} of this head, the weights computed here and the model's own differ by at most `
    + `${tiny(found.weights)}, the sums by ${tiny(found.sums)}.`);
}

function table(layer, head, row, keys, key) {
  let order = keys.map((_, j) => j);
  const all = order.length <= MAX_ROWS;
  if (!all) order = order.sort((a, b) => row.weights[b] - row.weights[a]).slice(0, MAX_ROWS);
  const lines = order.map((j) => el('tr', { class: j === key ? 'chosen' : '' },
    el('th', { scope: 'row' }, el('button', { type: 'button', 'aria-pressed': String(j === key), click: () => choose({ key: j }) }, keys[j].text)),
    el('td', {}, short(row.scores[j], 2)),
    el('td', {}, short(row.scaled[j], 2)),
    el('td', { class: 'weight', 'data-key': j, style: `--part:${(100 * row.weights[j]).toFixed(2)}%` }, short(row.weights[j])),
    el('td', { class: 'norm' }, short(row.weights[j] * layer.norms[head * layer.source + j], 3))));
  return el('div', { class: 'wide' },
    el('table', {},
      el('caption', {}, all ? 'All words that can be looked at' : `The ${MAX_ROWS} of ${keys.length} words with the largest weights`),
      el('thead', {}, el('tr', {}, ...['word', '2: q · k', '3: scaled', '4: weight', '5: ‖weight · v Wₒ‖']
        .map((text) => el('th', { scope: 'col' }, text)))),
      el('tbody', {}, ...lines)));
}
