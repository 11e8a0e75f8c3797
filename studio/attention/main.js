// The page, from top to bottom.
import { announce, attentionOf, choose, keyTokens, mainHead, matrixOf, onChange, page, queryTokens, state } from './data.js';
import { makeControls, makeCaption } from './controls.js';
import { makeHeat, makeLegend } from './heat.js';
import { makeLines } from './lines.js';
import { makeMultiples } from './multiples.js';
import { describeChange, makePair } from './pair.js';
import { absent, makeSteps } from './steps.js';
import { makeNotes, makeViews } from './views.js';
import { el } from './dom.js';

const lines = makeLines();
const heat = makeHeat('Heat map', () => ({
  matrix: matrixOf(state.run, state.layer, mainHead(), state.view),
  rows: queryTokens(state.run),
  columns: keyTokens(state.run),
  row: state.token,
  hidden: new Set(attentionOf(state.run).layers[state.layer].bias.hidden),
}), (i, j) => choose({ token: i, key: j }));
const legend = makeLegend();
const controls = makeControls(() => lines.visible());
const caption = makeCaption();
const missing = el('p', { class: 'absent' });
const multiples = makeMultiples();
const steps = makeSteps();
const views = makeViews();
const pairs = page.runs.map((run, n) => ({ run, n })).filter(({ n }) => n > 0).map(({ run, n }) => ({ run, view: makePair(n) }));

const section = (id, title, ...content) => el('section', { id, 'aria-labelledby': `${id}-title` }, el('h2', { id: `${id}-title` }, title), ...content);

document.querySelector('main').append(
  el('header', {},
    el('h1', {}, page.runs[0].text),
    el('p', { class: 'model' }, `Attention of ${page.model} (${page.family}): ${page.layers} layers. Layers, heads and positions are counted from 0.`)),
  controls.element,
  section('lines', 'Who looks at whom',
    caption.element, missing,
    el('div', { class: 'side' },
      el('div', { class: 'column' }, el('p', { class: 'hint' }, 'Words on the left look at words on the right. Choose a word on the left; ↑ and ↓ move.'), lines.element),
      el('div', { class: 'column' }, el('p', { class: 'hint' }, 'Rows look at columns. Choose a cell to follow its numbers below.'), heat.element, legend.element))),
  section('all', 'All layers and heads', el('p', { class: 'hint' }, 'Layers from top to bottom, heads from left to right.'), multiples.element),
  section('six', 'The six steps', steps.element),
  section('views', 'The same row in three ways', views.element),
  ...pairs.map(({ run, view }) => (run.role === 'changed'
    ? section('change', 'What if', el('p', {}, describeChange(run)), view.element)
    : section('compare', 'Two sentences', view.element))),
  section('notes', 'What attention does not prove', makeNotes()),
);

const drawn = [controls, caption, lines, heat, legend, multiples, steps, views, ...pairs.map(({ view }) => view)];
onChange(() => {
  const known = matrixOf(state.run, state.layer, mainHead(), state.view);
  missing.textContent = known ? '' : absent();
  document.body.classList.toggle('missing', !known);
  for (const part of drawn) part.draw();
});

// Keys that work everywhere but where something is typed.
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, select')) return;
  const patch = {
    '[': { layer: state.layer - 1 },
    ']': { layer: state.layer + 1 },
    ',': { heads: [Math.max(0, mainHead() - 1)] },
    '.': { heads: [Math.min(attentionOf(state.run).layers[state.layer].heads - 1, mainHead() + 1)] },
  }[event.key];
  if (patch) choose(patch);
});

new ResizeObserver(announce).observe(document.querySelector('main'));
announce();
