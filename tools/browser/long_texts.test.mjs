// The attention page of the translator on a text of over 200 words: three kinds of attention, and numbers that do not all fit.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { choose, conjure, folder, launch, openPage, settle } from './chromium.mjs';

const SENTENCE = Array(7).fill('red heart blue car grinning cat face sun behind cloud flag of Japan two hearts black cat house with garden').join(' ');
const KINDS = [['Input - Input', 'self'], ['Output - Output', 'causal'], ['Output - Input', 'cross']];
const out = folder();
const [whole, part] = ['whole.html', 'part.html'].map((name) => join(out, name));
let browser;
let numbers;

before(async () => {
  const explain = (...more) => conjure('explain', 'attention', SENTENCE, '--model', 'models/translator', '--to', 'de', ...more);
  explain('--out', whole, '--json', join(out, 'all.json'));
  explain('--out', part, '--budget', '1');
  numbers = JSON.parse(readFileSync(join(out, 'all.json'))).runs[0];
  browser = await launch();
});
after(() => browser?.close());

const number = (text) => Number(text.replace('−', '-'));

/** What is drawn in a canvas, read from a copy, which leaves the page's own as it is. */
const pixels = (page, selector) => page.$eval(selector, (canvas) => {
  const context = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, height: canvas.height, values: [...new Uint32Array(data.buffer)] };
});

/** The table's weights of the chosen word, beside those exported. */
async function compare(page, layer, token) {
  const shown = await page.$$eval('td.weight', (cells) => cells.map((cell) => [Number(cell.dataset.key), cell.textContent]));
  const { weights } = layer.heads[0];
  assert.equal(shown.length, Math.min(40, weights[token].length));
  for (const [key, text] of shown) assert.ok(Math.abs(number(text) - weights[token][key]) <= 5.1e-5, `${key} ${text}`);
  // Of a longer text the largest are shown.
  const left = weights[token].filter((_, key) => !shown.some(([one]) => one === key));
  const least = Math.min(...shown.map(([key]) => weights[token][key]));
  assert.ok(left.every((weight) => weight <= least + 1e-6));
  assert.match(await page.textContent('.check'), /Equal to the model/);
}

test('input, output and what lies between are those exported', async () => {
  const { page, wrong } = await openPage(browser, whole);
  assert.ok(numbers.sequences[0].tokens.length > 200, `${numbers.sequences[0].tokens.length} tokens`);
  for (const [n, [name, kind]] of KINDS.entries()) {
    await choose(page, `kind-${n}`);
    const attention = numbers.attentions[n];
    assert.deepEqual([attention.name, attention.kind], [name, kind]);
    const [last] = attention.layers.slice(-1);
    assert.equal(await page.textContent('#lines .caption'), `Layer ${last.layer}, Attention: ${name} (Head 0)`);
    const count = numbers.sequences[attention.queries].tokens.length;
    const token = Math.floor(count / 2);
    // A long text has a field for the word's number.
    if (count > 200) {
      await page.fill('[name="token"]', String(token));
      await page.press('[name="token"]', 'Enter');
      await settle(page);
    } else {
      await choose(page, `token-${token}`);
    }
    await compare(page, last, token);
  }
  assert.deepEqual(wrong, []);
  await page.close();
});

test('layers that did not fit say so, and their small pictures are there', async () => {
  const { page, wrong } = await openPage(browser, part);
  const { layers } = numbers.attentions[0];
  await compare(page, layers.at(-1), numbers.sequences[0].tokens.length - 1);
  await choose(page, 'layer-before');
  const place = layers.length - 2;
  assert.match(await page.textContent('.steps .absent'), new RegExp(`numbers of layer ${place} are not in this page.*--layer ${place}`));
  assert.ok(await page.isDisabled('[data-name="save-CSV"]'));
  await page.waitForTimeout(500);
  const { width, height, values } = await pixels(page, '.multiples canvas');
  // Some lines of pixels in each layer's row of pictures.
  const colours = layers.map((_, n) => {
    const from = Math.floor(height * (n + 0.7) / (layers.length + 0.4)) * width;
    return new Set(values.slice(from, from + 9 * width)).size;
  });
  assert.ok(colours.every((count) => count > 8), `${colours}`);
  await choose(page, 'layer-after');
  await compare(page, layers.at(-1), numbers.sequences[0].tokens.length - 1);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('the far end of a long text is drawn when it is scrolled to', async () => {
  const { page, wrong } = await openPage(browser, whole);
  const ink = async () => (await pixels(page, '#lines .scroll canvas')).values.reduce((sum, x) => sum + (x >>> 24), 0);
  await page.$eval('#lines .scroll', (box) => { box.scrollTop = 0; });
  await page.waitForTimeout(500);
  const top = await ink();
  await page.$eval('#lines .scroll', (box) => { box.scrollTop = box.scrollHeight; });
  await page.waitForTimeout(500);
  const end = await ink();
  assert.ok(top > 0 && end > 0 && top !== end);
  assert.deepEqual(wrong, []);
  await page.close();
});
