// What can be chosen: kind of attention, sentence, layer, heads, word, view; and the buttons that save.
import { attentionOf, choose, layerOf, mainHead, matrixOf, page, queryTokens, state } from './data.js';
import { captionText, csvText, drawing, jsonText, pngOf, save } from './export.js';
import { headColour } from './colour.js';
import { el } from './dom.js';

const KINDS = { self: 'Self-attention', causal: 'Causal self-attention', cross: 'Cross-attention' };
const ROLES = { original: 'The sentence', compared: 'The second sentence', changed: 'After the change' };
const VIEWS = { raw: 'Attention weights', norm: 'Weighted by value norms', rollout: 'Rollout' };
/** Longer texts have a number to choose a word by, and show the words around it. */
const MAX_WORDS = 200;

/** The controls' element and how to fill it. `visible()` says which tokens the lines show. */
export function makeControls(visible) {
  const kinds = el('div', { class: 'tabs', role: 'tablist', 'aria-label': 'Kind of attention' });
  const choices = el('div', { class: 'choices' });
  const heads = el('div', { class: 'heads', role: 'group', 'aria-label': 'Heads' });
  const words = el('div', { class: 'words', role: 'group', 'aria-label': 'Words' });
  const saves = el('div', { class: 'saves' });
  const element = el('div', { class: 'controls' }, kinds, choices, heads, words, saves);

  const select = (label, name, options, chosen, pick) =>
    el('label', {}, `${label} `, el('select', { name, change: (event) => pick(event.target.value) },
      ...options.map(([value, text]) => el('option', { value, selected: String(value) === String(chosen) }, text))));
  const stepper = (label, name, value, count, pick) => el('span', { class: 'stepper' },
    el('button', { type: 'button', 'aria-label': `${label} before`, disabled: value <= 0, 'data-name': `${name}-before`, click: () => pick(value - 1) }, '◀'),
    select(label, name, Array.from({ length: count }, (_, n) => [n, n]), value, (text) => pick(Number(text))),
    el('button', { type: 'button', 'aria-label': `${label} after`, disabled: value >= count - 1, 'data-name': `${name}-after`, click: () => pick(value + 1) }, '▶'));

  function draw() {
    const focused = nameOf(document.activeElement);
    const attention = attentionOf(state.run);
    kinds.replaceChildren(...page.runs[state.run].attentions.map((one, n) => el('button', {
      type: 'button', role: 'tab', 'aria-selected': String(n === state.attention), 'data-name': `kind-${n}`,
      click: () => choose({ attention: n, layer: state.layer }),
    }, `${KINDS[one.kind]}: ${one.name}`)));
    const parts = [];
    if (page.runs.length > 1) {
      parts.push(select('Shown', 'run', page.runs.map((run, n) => [n, `${ROLES[run.role]}`]), state.run,
        (value) => choose({ run: Number(value) })));
    }
    parts.push(stepper('Layer', 'layer', state.layer, attention.layers.length, (layer) => choose({ layer })));
    parts.push(select('Values', 'view', Object.entries(VIEWS), state.view, (view) => choose({ view })));
    parts.push(el('label', {}, el('input', { type: 'checkbox', name: 'all', checked: state.allLines,
      change: (event) => choose({ allLines: event.target.checked }) }), ' lines of all words'));
    choices.replaceChildren(...parts);

    const count = attention.layers[state.layer].heads;
    const silent = (page.runs[state.run].change?.silent ?? []).filter(([layer]) => layer === state.layer).map(([, head]) => head);
    heads.replaceChildren(el('span', { class: 'label' }, 'Heads'),
      ...Array.from({ length: count }, (_, head) => el('button', {
        type: 'button', class: silent.includes(head) ? 'silent' : '', style: `--head:${headColour(head)}`, 'data-name': `head-${head}`,
        'aria-pressed': String(state.heads.includes(head)), title: silent.includes(head) ? 'switched off' : `head ${head}; Shift adds it`,
        click: (event) => {
          const several = event.shiftKey || event.ctrlKey || event.metaKey;
          if (!several) choose({ heads: [head] });
          else if (state.heads.includes(head)) choose({ heads: state.heads.filter((other) => other !== head) });
          else choose({ heads: [...state.heads, head] });
        },
      }, head)),
      el('button', { type: 'button', class: 'plain', 'data-name': 'head-all', click: () =>
        choose({ heads: state.heads.length > 1 ? [mainHead()] : Array.from({ length: count }, (_, n) => n) }) },
      state.heads.length > 1 ? 'one' : 'all'));
    drawWords();
    saves.replaceChildren(el('span', { class: 'label' }, 'Save'), ...[
      ['SVG', () => save('attention.svg', drawing(visible()), 'image/svg+xml')],
      ['PNG', async () => save('attention.png', await pngOf(drawing(visible())))],
      ['CSV', () => save('attention.csv', csvText(), 'text/csv')],
      ['JSON', () => save('attention.json', jsonText(), 'application/json')],
    ].map(([name, click]) => el('button', {
      type: 'button', 'data-name': `save-${name}`, disabled: !layerOf(state.run, state.layer).isWhole, click,
    }, name)));
    if (focused) element.querySelector(focused)?.focus();
  }

  function drawWords() {
    const tokens = queryTokens(state.run);
    const long = tokens.length > MAX_WORDS;
    const first = long ? Math.max(0, state.token - 20) : 0;
    const shown = tokens.slice(first, long ? state.token + 21 : tokens.length);
    const hidden = page.runs[state.run].change?.hidden ?? [];
    const matrix = matrixOf(state.run, state.layer, mainHead(), state.view);
    const row = attentionOf(state.run).kind === 'cross' ? null : matrix?.row(state.token);
    words.replaceChildren(
      el('span', { class: 'label' }, 'Word'),
      ...(long ? [el('input', { type: 'number', name: 'token', min: 0, max: tokens.length - 1, value: state.token, 'aria-label': 'Number of the word',
        change: (event) => choose({ token: Number(event.target.value) || 0 }) })] : []),
      ...(first > 0 ? ['…'] : []),
      ...shown.map((token, n) => {
        const index = first + n;
        return el('button', {
          type: 'button', 'data-name': `token-${index}`, 'aria-pressed': String(index === state.token),
          tabindex: index === state.token ? '0' : '-1',
          class: hidden.includes(index) ? 'hidden' : '', style: row ? `--part:${Math.sqrt(row[index]).toFixed(3)}` : '',
          click: () => choose({ token: index }),
          keydown: (event) => {
            const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
            if (!step) return;
            event.preventDefault();
            choose({ token: state.token + step });
            requestAnimationFrame(() => requestAnimationFrame(() => words.querySelector(`[data-name="token-${state.token}"]`)?.focus()));
          },
        }, token.text);
      }),
      ...(long && state.token + 21 < tokens.length ? ['…'] : []));
  }

  return { element, draw };
}

/** How to find an element again after the controls were filled anew. */
function nameOf(element) {
  if (element?.dataset?.name) return `[data-name="${element.dataset.name}"]`;
  return element?.name ? `[name="${element.name}"]` : null;
}

/** The caption over the lines. */
export function makeCaption() {
  const element = el('p', { class: 'caption', 'aria-live': 'polite' });
  return {
    element,
    draw: () => {
      const { title, heads } = captionText();
      element.replaceChildren(el('b', {}, title), ` (${heads})`);
    },
  };
}
