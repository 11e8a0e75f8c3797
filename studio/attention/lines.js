// Lines between words, in the style of tensor2tensor: the words on the left look at the words on the right.
import { attentionOf, choose, keyTokens, matrixOf, queryTokens, state } from './data.js';
import { headColour, styleColour } from './colour.js';
import { cut, inSlices, prepare, scrollBox, SLICE } from './dom.js';

const LINE_HEIGHT = 22;
/** Weights below are not drawn. */
const FAINT = 0.01;

/** The view's element and how to draw it. */
export function makeLines() {
  const { box, spacer, canvas } = scrollBox('Lines from each word to the words that it looks at', () => draw());
  box.setAttribute('role', 'application');
  let hover = null;
  let followed = '';

  const place = (event) => {
    const bounds = canvas.getBoundingClientRect();
    const index = Math.floor((event.clientY - bounds.top + box.scrollTop) / LINE_HEIGHT);
    const left = event.clientX - bounds.left < bounds.width / 2;
    const count = (left ? queryTokens(state.run) : keyTokens(state.run)).length;
    return index >= 0 && index < count ? { index, left } : null;
  };
  canvas.addEventListener('pointermove', (event) => {
    const next = place(event);
    if (next?.index !== hover?.index || next?.left !== hover?.left) {
      hover = next;
      draw();
    }
  });
  canvas.addEventListener('pointerleave', () => {
    hover = null;
    draw();
  });
  canvas.addEventListener('click', (event) => {
    const chosen = place(event);
    if (chosen?.left) choose({ token: chosen.index });
    else if (chosen) choose({ key: chosen.index });
  });
  box.addEventListener('keydown', (event) => {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose({ token: state.token + step });
  });

  function draw() {
    const [queries, keys] = [queryTokens(state.run), keyTokens(state.run)];
    const width = box.clientWidth;
    const whole = Math.max(queries.length, keys.length) * LINE_HEIGHT;
    const height = Math.min(whole, Math.max(240, Math.round(window.innerHeight * 0.6)));
    box.style.height = `${height}px`;
    spacer.style.height = `${whole}px`;
    // A word that was chosen elsewhere comes into view; scrolling away from it stays possible.
    const chosen = `${state.run} ${state.attention} ${state.token}`;
    const y = state.token * LINE_HEIGHT;
    if (chosen !== followed && (y < box.scrollTop || y > box.scrollTop + height - LINE_HEIGHT)) box.scrollTop = y - height / 2;
    followed = chosen;
    inSlices('lines', () => !paint(queries, keys, width, height));
  }

  /** Draws what is visible of the rows that there are; false where some took too long and another frame is needed. */
  function paint(queries, keys, width, height) {
    const context = prepare(canvas, width, height);
    const top = box.scrollTop;
    const column = Math.min(180, width * 0.36);
    const first = Math.max(0, Math.floor(top / LINE_HEIGHT));
    const last = Math.min(Math.max(queries.length, keys.length), Math.ceil((top + height) / LINE_HEIGHT));
    const middle = (n) => n * LINE_HEIGHT + LINE_HEIGHT / 2 - top;
    const active = hover ?? { index: state.token, left: true };
    const matrices = state.heads.map((head) => matrixOf(state.run, state.layer, head, state.view));
    const begun = performance.now();
    let complete = true;
    const weightsFor = (matrix, i) => {
      const known = matrix.peek(i);
      if (known) return known;
      if (performance.now() - begun > SLICE) complete = false;
      return complete ? matrix.row(i) : null;
    };

    context.lineCap = 'round';
    matrices.forEach((matrix, n) => {
      if (!matrix) return;
      context.strokeStyle = headColour(state.heads[n]);
      const connect = (i, j, weight, strength) => {
        if (weight < (strength < 1 && keys.length > 200 ? 2 * FAINT : FAINT)) return;
        context.globalAlpha = Math.min(1, weight * strength);
        context.lineWidth = strength < 1 ? 1.2 : 2.2;
        context.beginPath();
        context.moveTo(column + 8, middle(i));
        context.lineTo(width - column - 8, middle(j));
        context.stroke();
      };
      const rowOf = (i, strength) => {
        const row = i < queries.length ? weightsFor(matrix, i) : null;
        if (!row) return;
        for (let j = 0; j < keys.length; j++) connect(i, j, row[j], strength);
      };
      if (state.allLines && !hover) for (let i = first; i < last; i++) if (i !== active.index) rowOf(i, 0.45);
      if (active.left) {
        rowOf(active.index, 1);
      } else {
        for (let i = first; i < Math.min(last, queries.length); i++) {
          const row = weightsFor(matrix, i);
          if (row) connect(i, active.index, row[active.index], 1);
        }
      }
      // A square behind each word that is looked at, one beside the other where there are several heads.
      if (active.left && active.index < queries.length) {
        const row = weightsFor(matrix, active.index);
        context.fillStyle = context.strokeStyle;
        const part = (column - 4) / matrices.length;
        for (let j = first; row && j < Math.min(last, keys.length); j++) {
          context.globalAlpha = 0.6 * row[j];
          context.fillRect(width - column + n * part, middle(j) - LINE_HEIGHT / 2 + 1, part, LINE_HEIGHT - 2);
        }
      }
    });

    context.globalAlpha = 1;
    context.font = '13px system-ui, sans-serif';
    context.textBaseline = 'middle';
    const hidden = new Set(attentionOf(state.run).layers[state.layer].bias.hidden);
    const write = (tokens, n, side) => {
      const chosen = active.left === (side === 'left') && active.index === n;
      context.fillStyle = styleColour(chosen ? '--accent-ink' : '--ink');
      const text = cut(context, tokens[n].text, column - 14);
      const x = side === 'left' ? column : width - column + 4;
      context.textAlign = side === 'left' ? 'right' : 'left';
      if (chosen) {
        context.fillStyle = styleColour('--accent');
        const measured = context.measureText(text).width + 10;
        context.fillRect(side === 'left' ? x - measured + 5 : x - 5, middle(n) - 10, measured, 20);
        context.fillStyle = styleColour('--accent-ink');
      }
      context.fillText(text, x, middle(n));
      if (hidden.has(n)) {
        const measured = context.measureText(text).width;
        context.fillRect(side === 'left' ? x - measured : x, middle(n), measured, 1.5);
      }
    };
    for (let n = first; n < Math.min(last, queries.length); n++) write(queries, n, 'left');
    for (let n = first; n < Math.min(last, keys.length); n++) write(keys, n, 'right');
    return complete;
  }

  return { element: box, draw, visible: () => visibleRange(box) };
}

/** The first token in view and the one after the last. */
function visibleRange(box) {
  const count = Math.max(queryTokens(state.run).length, keyTokens(state.run).length);
  const first = Math.floor(box.scrollTop / LINE_HEIGHT);
  return [first, Math.min(count, Math.ceil((box.scrollTop + box.clientHeight) / LINE_HEIGHT))];
}
