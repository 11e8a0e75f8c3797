// A second run beside the first: another sentence, or the same one with words hidden or heads switched off.
import { attentionOf, choose, keyTokens, mainHead, matrixOf, page, queryTokens, state } from './data.js';
import { alignTokens } from './math.js';
import { makeHeat, makeLegend } from './heat.js';
import { bars, el, short } from './dom.js';

const MAX_BARS_EACH = 8;

/** The view's element and how to draw it. `other` is the second run's number. */
export function makePair(other) {
  const run = page.runs[other];
  const changed = run.role === 'changed';
  const [before, after] = changed ? ['Before', 'After'] : ['First', 'Second'];
  const matrix = (number) => matrixOf(number, state.layer, mainHead(), state.view);
  // A word that was chosen in the first run, and its counterpart in the second.
  const words = el('div', { class: 'columns two' });
  const predictions = el('div', { class: 'predictions' });
  const heading = el('p', { class: 'caption' });
  const legends = [makeLegend(), makeLegend(true)];

  const own = (number) => () => ({
    matrix: matrix(number),
    rows: queryTokens(number),
    columns: keyTokens(number),
    row: number === 0 ? firstToken() : counterpart(firstToken()),
    hidden: new Set(attentionOf(number).layers[state.layer].bias.hidden),
  });
  const difference = () => {
    const [a, b] = [matrix(0), matrix(other)];
    const rows = alignment(queryTokens);
    const columns = alignment(keyTokens);
    const tokens = (pairs, of) => pairs.map(([i, j]) => {
      const [left, right] = [of(0)[i], of(other)[j]];
      return { text: left.id === right.id ? left.text : `${left.text}/${right.text}` };
    });
    const known = new Map();
    const row = (n) => {
      if (!known.has(n)) {
        const [left, right] = [a.row(rows[n][0]), b.row(rows[n][1])];
        known.set(n, Float32Array.from(columns, ([i, j]) => right[j] - left[i]));
      }
      return known.get(n);
    };
    return {
      matrix: a && b ? { row, peek: (n) => known.get(n) } : null,
      rows: tokens(rows, queryTokens),
      columns: tokens(columns, keyTokens),
      change: true,
      word: '→',
    };
  };
  // The difference is asked for often while the pointer moves; it changes only with what is chosen.
  let difference0 = null;
  const differenceNow = () => (difference0 ??= difference());
  const heats = [
    makeHeat(`${before}: heat map`, own(0), (i) => choose({ run: 0, token: i }), 470),
    makeHeat(`${after}: heat map`, own(other), (i) => choose({ run: other, token: i }), 470),
    makeHeat('Difference: heat map', differenceNow, null, 470),
  ];

  function firstToken() {
    if (state.run === 0) return state.token;
    if (state.run !== other) return page.focus.token;
    const pair = alignment(queryTokens).find(([, j]) => j === state.token);
    return pair ? pair[0] : page.focus.token;
  }

  function counterpart(token) {
    if (state.run === other) return state.token;
    const pair = alignment(queryTokens).find(([i]) => i === token);
    return pair ? pair[1] : page.focus.compared_token ?? 0;
  }

  const alignments = new Map();
  function alignment(of) {
    const [a, b] = [of(0), of(other)];
    if (!alignments.has(a)) alignments.set(a, alignTokens(a, b));
    return alignments.get(a);
  }

  function draw() {
    difference0 = null;
    heading.textContent = `Layer ${state.layer}, Head ${mainHead()}, Attention: ${attentionOf(0).name}`;
    heats.forEach((heat) => heat.draw());
    legends.forEach((legend) => legend.draw());
    const [i, j] = [firstToken(), counterpart(firstToken())];
    words.replaceChildren(
      looks(0, i, before, matrix(0), changed ? before : page.runs[0].text),
      looks(other, j, after, matrix(other), changed ? after : run.text));
    predictions.replaceChildren(...(changed || run.predictions.length ? predicted(run, other, i, j, before, after) : similar(run)));
  }

  const panel = (title, heat, legend) =>
    el('div', { class: 'column' }, el('h3', {}, title), heat.element, legend?.element);
  const element = el('div', { class: 'pair', 'data-run': other },
    heading,
    el('div', { class: 'columns' },
      panel(changed ? 'Before' : `1: ${page.runs[0].text}`, heats[0], legends[0]),
      panel(changed ? 'After' : `2: ${run.text}`, heats[1]),
      panel(changed ? 'Difference: after − before' : 'Difference: 2 − 1', heats[2], legends[1])),
    words, predictions);
  return { element, draw };
}

/** What a second run is, in words. */
export function describeChange(run) {
  const { hidden, silent } = run.change;
  const { tokens } = run.sequences[0];
  const parts = [];
  if (hidden.length) {
    const spelt = hidden.map((n) => `“${tokens[n].text}”`).join(', ');
    parts.push(`No other position sees ${spelt}, in any layer.`);
  }
  if (silent.length) {
    const named = silent.map(([layer, head]) => `${layer}.${head}`).join(', ');
    parts.push(`${silent.length === 1 ? 'Head' : 'Heads'} ${named} (layer.head) ${silent.length === 1 ? 'adds' : 'add'} nothing`
      + `${hidden.length ? '.' : '; the attention of the layers up to there is as before.'}`);
  }
  return parts.join(' ');
}

function looks(number, token, title, matrix, heading) {
  const content = [el('h3', {}, heading)];
  if (!matrix) return el('div', { class: 'column' }, ...content, el('p', { class: 'absent' }, 'Not in this page.'));
  const keys = keyTokens(number);
  const row = matrix.row(token);
  const order = [...keys.keys()].sort((a, b) => row[b] - row[a]).slice(0, MAX_BARS_EACH);
  content.push(el('p', { class: 'who' }, `“${queryTokens(number)[token].text}” looks at`));
  content.push(bars(order.map((j) => ({ text: keys[j].text, value: row[j] }))));
  return el('div', { class: 'column', 'data-looks': number }, ...content);
}

function similar(run) {
  if (run.embedding_cosine == null) return [];
  return [el('p', {}, `Cosine of the two sentences' embeddings: ${short(run.embedding_cosine)}.`)];
}

/** What the model says, before and after. */
function predicted(run, other, i, j, before, after) {
  const parts = [el('h3', {}, run.role === 'changed' ? 'What changes in the prediction' : 'What the model would say next')];
  // Predictions belong to the last sequence; where another one looks, its end is shown.
  const speaks = attentionOf(0).queries === run.sequences.length - 1;
  const say = (number, token) => page.runs[number].predictions.find((one) => speaks && one.position === token)
    ?? page.runs[number].predictions.at(-1);
  const [a, b] = [say(0, i), say(other, j)];
  if (a && b) {
    const column = (title, said, number) => el('div', { class: 'column' },
      el('p', { class: 'who' }, `${title}, after “${page.runs[number].sequences.at(-1).tokens[said.position].text}”`),
      bars(said.top.map((one) => ({ text: one.text, value: one.probability }))));
    parts.push(el('div', { class: 'columns two' }, column(before, a, 0), column(after, b, other)));
  } else {
    parts.push(el('p', {}, 'This model does not continue texts: it makes numbers that stand for the text.'));
  }
  if (run.embedding_cosine != null) {
    parts.push(el('p', {}, 'Cosine of the text’s embedding before and after: ',
      el('b', { 'data-name': 'embedding' }, short(run.embedding_cosine)), ' (1 is no change).'));
  }
  if (run.output_cosines.length) {
    const { tokens } = run.sequences[0];
    const order = [...tokens.keys()].sort((x, y) => run.output_cosines[x] - run.output_cosines[y]).slice(0, MAX_BARS_EACH);
    parts.push(el('p', { class: 'who' }, 'Tokens whose last vector turned most (1 − cosine)'));
    parts.push(bars(order.map((n) => ({ text: tokens[n].text, value: 1 - run.output_cosines[n] }))));
  }
  return parts;
}
