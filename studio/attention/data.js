// The page's data, what is chosen, and the matrices that the views draw.
import { decodeBytes, decodeFloats, normWeighted, rolloutStep, weightsOf } from './math.js';

/** What `conjure explain attention` wrote. */
export const page = JSON.parse(document.getElementById('data').textContent);

/** What is chosen. All numbers count from 0; `key` is the position whose part in the steps is spelt out. */
export const state = {
  run: 0,
  attention: page.focus.attention,
  layer: page.focus.layer,
  heads: [page.focus.head],
  token: page.focus.token,
  key: null,
  view: 'raw',
  allLines: true,
};

const listeners = [];
let pending = false;

/** Calls back, at most once per frame, after something else was chosen. */
export function onChange(listener) {
  listeners.push(listener);
}

/** Chooses something else. */
export function choose(patch) {
  if ('token' in patch || 'layer' in patch || 'heads' in patch || 'run' in patch) state.key = null;
  Object.assign(state, patch);
  const attention = attentionOf(state.run);
  state.layer = Math.min(Math.max(state.layer, 0), attention.layers.length - 1);
  const { heads } = attention.layers[state.layer];
  state.heads = [...new Set(state.heads)].filter((head) => head >= 0 && head < heads);
  if (state.heads.length === 0) state.heads = [0];
  state.token = Math.min(Math.max(state.token, 0), queryTokens(state.run).length - 1);
  announce();
}

/** Has everything drawn again. */
export function announce() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    for (const listener of listeners) listener();
  });
}

/** The head whose numbers are shown: the one chosen first. */
export function mainHead() {
  return state.heads[0];
}

/** The chosen kind of attention in a run. */
export function attentionOf(run) {
  return page.runs[run].attentions[state.attention];
}

/** The tokens that look. */
export function queryTokens(run) {
  return page.runs[run].sequences[attentionOf(run).queries].tokens;
}

/** The tokens that are looked at. */
export function keyTokens(run) {
  return page.runs[run].sequences[attentionOf(run).keys].tokens;
}

const decoded = new WeakMap();
const floats = (array) => (array ? { shape: array.shape, data: decodeFloats(array.f32) } : null);

/** A layer with its numbers decoded, which happens when it is first asked for. */
export function layerOf(run, number) {
  const raw = attentionOf(run).layers[number];
  let layer = decoded.get(raw);
  if (!layer) {
    const { bias, whole } = raw;
    layer = {
      ...raw,
      bias: {
        ...bias,
        by_distance: floats(bias.by_distance),
        by_key: floats(bias.by_key),
        by_pair: floats(bias.by_pair),
      },
      norms: decodeFloats(raw.norms.f32),
      isWhole: Boolean(whole),
    };
    if (whole) {
      layer.q = decodeFloats(whole.q.f32);
      layer.k = decodeFloats(whole.k.f32);
      layer.v = decodeFloats(whole.v.f32);
      layer.recorded = {
        rows: whole.recorded.rows,
        weights: decodeFloats(whole.recorded.weights.f32),
        sums: decodeFloats(whole.recorded.sums.f32),
      };
    }
    if (raw.thumbnails) layer.thumbnails = { ...raw.thumbnails, data: decodeBytes(raw.thumbnails.u8) };
    decoded.set(raw, layer);
  }
  return layer;
}

const MAX_MATRICES = 12;
const matrices = new Map();

/**
 * A matrix of a head, of which rows are computed when they are asked for: `row(i)`, or `peek(i)`, which is null where that
 * has not happened yet. Null where the page has not got the layer's numbers.
 */
export function matrixOf(run, number, head, view = 'raw') {
  const layer = layerOf(run, number);
  if (!layer.isWhole) return null;
  const name = [run, state.attention, number, view === 'rollout' ? '' : head, view].join(' ');
  let matrix = matrices.get(name);
  if (!matrix) {
    const rows = new Array(layer.time).fill(null);
    let compute = (i) => weightsOf(layer, head, i);
    if (view === 'norm') compute = (i) => normWeighted(weightsOf(layer, head, i), layer.norms, head);
    if (view === 'rollout') {
      const rolled = rolloutOf(run, number);
      if (!rolled) return null;
      compute = (i) => rolled[i];
    }
    matrix = {
      rows: layer.time,
      columns: layer.source,
      peek: (i) => rows[i],
      row: (i) => (rows[i] ??= compute(i)),
    };
  }
  // The least recently used goes when there are too many.
  matrices.delete(name);
  matrices.set(name, matrix);
  if (matrices.size > MAX_MATRICES) matrices.delete(matrices.keys().next().value);
  return matrix;
}

const MAX_ROLLOUT = 256;
const rollouts = new Map();

/** Why there is no rollout here; empty where there is one. */
export function whyNoRollout(run) {
  const attention = attentionOf(run);
  if (attention.kind === 'cross') return 'Rollout follows a sequence through its own layers; here two sequences meet.';
  if (queryTokens(run).length > MAX_ROLLOUT) return `Rollout is computed for up to ${MAX_ROLLOUT} tokens.`;
  if (!attention.layers.every((layer) => layer.whole)) return 'Rollout needs every layer, and some are not in this page.';
  return '';
}

function rolloutOf(run, number) {
  if (whyNoRollout(run)) return null;
  const name = `${run} ${state.attention}`;
  const done = rollouts.get(name) ?? [];
  rollouts.set(name, done);
  while (done.length <= number) done.push(rolloutStep(layerOf(run, done.length), done[done.length - 1]));
  return done[number];
}
