// One row in three ways: the weights, the weights times the values' norms, and rollout. And what none of them proves.
import { keyTokens, mainHead, matrixOf, queryTokens, state, whyNoRollout } from './data.js';
import { bars, el } from './dom.js';

const MAX_BARS = 12;

/** The view's element and how to fill it. */
export function makeViews() {
  const element = el('div', { class: 'columns' });
  return {
    element,
    draw: () => element.replaceChildren(
      column('raw', 'Attention weights', `The softmax of head ${mainHead()}, layer ${state.layer}.`),
      column('norm', 'Weighted by value norms',
        'Weight × ‖v W_O‖, made to sum to 1: a word with a large weight and a small value adds little '
        + '(Kobayashi et al. 2020).'),
      column('rollout', 'Rollout',
        `All heads of layers 0 to ${state.layer} multiplied, half of each layer being the residual connection `
        + '(Abnar & Zuidema 2020). It belongs to no head.'),
    ),
  };
}

function column(view, title, text) {
  const reason = view === 'rollout' ? whyNoRollout(state.run) : '';
  const matrix = reason ? null : matrixOf(state.run, state.layer, mainHead(), view);
  const keys = keyTokens(state.run);
  const word = queryTokens(state.run)[state.token].text;
  const content = [el('h3', {}, title), el('p', {}, text)];
  if (!matrix) {
    content.push(el('p', { class: 'absent' }, reason || 'The numbers of this layer are not in the page.'));
  } else {
    const row = matrix.row(state.token);
    const order = [...keys.keys()].sort((a, b) => row[b] - row[a]).slice(0, MAX_BARS);
    content.push(el('p', { class: 'who' }, `“${word}” →`));
    content.push(bars(order.map((j) => ({ text: keys[j].text, value: row[j] }))));
  }
  return el('div', { class: 'column', 'data-view': view }, ...content);
}

/** What attention does not prove. */
export function makeNotes() {
  const link = (href, text) => el('a', { href, rel: 'noreferrer' }, text);
  return el('div', { class: 'notes' },
    el('p', {}, 'A weight says how much of a word’s value enters a sum. It does not say why the model answers as it does.'),
    el('ul', {},
      el('li', {}, link('https://arxiv.org/abs/1902.10186', 'Jain & Wallace 2019'), ' found that quite different weights can give the '
        + 'same answer, and that weights agree poorly with other measures of importance.'),
      el('li', {}, link('https://arxiv.org/abs/1908.04626', 'Wiegreffe & Pinter 2019'), ' answered that this depends on what counts as an '
        + 'explanation: weights found by an adversary are often not those that training would find.'),
      el('li', {}, 'The same weights mean different things with different values (',
        link('https://arxiv.org/abs/2004.10102', 'Kobayashi et al. 2020'), '), and after the first layer a position holds a mixture of '
        + 'words, not the word that stands there (', link('https://arxiv.org/abs/2005.00928', 'Abnar & Zuidema 2020'), ').'),
      el('li', {}, 'Many heads look at the first, the last or a punctuation token when they have nothing to do.'),
      el('li', {}, 'To ask what a word or a head is good for, take it away and see what changes: --mask and --ablate. Even that shows '
        + 'this sentence, not the model.')));
}
