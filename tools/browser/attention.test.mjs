// The attention page: what it shows is what the model computed, and it can be used.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { choose as click, conjure, folder, launch, openPage, settle } from './chromium.mjs';

const MODEL = process.env.MODEL ?? 'models/emoji';
const SENTENCE = 'The lamp could not be packed into the suitcase because it was too large';
const out = folder();
const path = join(out, 'page.html');
let browser;
let numbers;

before(async () => {
  conjure('explain', 'attention', SENTENCE, '--model', MODEL, '--compare', SENTENCE.replace('large', 'small'),
    '--mask', 'suitcase', '--ablate', '1.2', '--out', path, '--json', join(out, 'all.json'), '--csv', join(out, 'all.csv'));
  numbers = JSON.parse(readFileSync(join(out, 'all.json')));
  browser = await launch();
});
after(() => browser?.close());

const open = (options) => openPage(browser, path, options);
const number = (text) => Number(text.replace('−', '-'));
const tokens = () => numbers.runs[0].sequences[0].tokens.map((token) => token.text);
const layers = () => numbers.runs[0].attentions[0].layers;

test('weights and sums shown are those exported, for every layer and head and several words', async () => {
  const { page, wrong } = await open();
  const count = layers().length;
  for (let layer = count - 1; layer > 0; layer--) await click(page, 'layer-before');
  for (let layer = 0; layer < count; layer++) {
    if (layer > 0) await click(page, 'layer-after');
    for (const { head, weights, sums } of layers()[layer].heads) {
      await click(page, `head-${head}`);
      const token = (layer * 7 + head * 3) % weights.length;
      await click(page, `token-${token}`);
      const shown = await page.$$eval('td.weight', (cells) => cells.map((cell) => [cell.dataset.key, cell.textContent]));
      assert.equal(shown.length, weights[token].length);
      for (const [key, text] of shown) assert.ok(Math.abs(number(text) - weights[token][key]) <= 5.1e-5, `${layer} ${head} ${text}`);
      const sum = await page.$eval('[data-name="sum"] .all', (all) => all.textContent);
      sum.split('  ').map(number).forEach((x, n) => assert.ok(Math.abs(x - sums[token][n]) <= 5.1e-4, `sum ${layer} ${head}`));
      const check = await page.$eval('.check', (p) => [p.className, p.dataset.weights, p.dataset.sums, p.textContent]);
      assert.match(check[0], /same/);
      assert.ok(Number(check[1]) < 1e-5 && Number(check[2]) < 1e-4, check[3]);
      const caption = await page.textContent('#lines .caption');
      assert.equal(caption, `Layer ${layer}, Attention: Input - Input (Head ${head})`);
    }
  }
  assert.deepEqual(wrong, []);
  await page.close();
});

test('the six steps follow from one another', async () => {
  const { page, wrong } = await open();
  await page.click('tbody tr:nth-child(3) button');
  await settle(page);
  const value = (name) => page.$eval(`[data-name="${name}"]`, (b) => Number(b.dataset.value));
  const [score, scaled, weight] = [await value('score'), await value('scaled'), await value('weight')];
  const { scale } = layers().at(-1);
  assert.ok(Math.abs(score * scale - scaled) < 1e-9 || scaled === -Infinity);
  const token = await page.$eval('.words [aria-pressed="true"]', (b) => Number(b.dataset.name.split('-')[1]));
  assert.ok(Math.abs(weight - layers().at(-1).heads[0].weights[token][2]) < 1e-12);
  assert.equal((await page.$$('.six > li')).length, 6);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('the word shown first is "it", and both sentences and the change are shown', async () => {
  const { page, wrong } = await open();
  assert.equal(await page.textContent('.words [aria-pressed="true"]'), 'it');
  assert.match(await page.textContent('#compare'), /Cosine of the two sentences/);
  assert.equal((await page.$$('#compare [data-looks]')).length, 2);
  const { hidden: all } = numbers.runs[2].change;
  assert.equal(all.map((n) => tokens()[n]).join(''), 'suitcase');
  assert.match(await page.textContent('#change'), /1\.2/);
  await page.selectOption('select[name="run"]', '2');
  await settle(page);
  // Nothing is left of the hidden word's weight but where it looks at itself.
  const hidden = numbers.runs[2].change.hidden[0];
  const shown = await page.$eval(`td.weight[data-key="${hidden}"]`, (cell) => cell.textContent);
  assert.equal(number(shown), 0);
  assert.match(await page.textContent('.check'), /Equal to the model/);
  for (const view of ['norm', 'rollout', 'raw']) {
    await page.selectOption('select[name="view"]', view);
    await settle(page);
  }
  assert.equal((await page.$$('#views [data-view] .bars')).length, 3);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('keys choose layers, heads and words', async () => {
  const { page, wrong } = await open();
  const caption = () => page.textContent('#lines .caption');
  const [last] = [layers().length - 1];
  await page.keyboard.press('[');
  await settle(page);
  assert.equal(await caption(), `Layer ${last - 1}, Attention: Input - Input (Head 0)`);
  await page.keyboard.press('.');
  await settle(page);
  assert.equal(await caption(), `Layer ${last - 1}, Attention: Input - Input (Head 1)`);
  await page.focus('.words [aria-pressed="true"]');
  await page.keyboard.press('ArrowLeft');
  await settle(page);
  assert.equal(await page.textContent('.words [aria-pressed="true"]'), tokens()[tokens().lastIndexOf('it') - 1]);
  await page.focus('.multiples canvas');
  await page.keyboard.press('ArrowLeft');
  await settle(page);
  assert.equal(await caption(), `Layer ${last - 1}, Attention: Input - Input (Head 0)`);
  assert.deepEqual(wrong, []);
  await page.close();
});

test('what is saved is what is shown', async () => {
  const { page, wrong } = await open();
  const saved = async (kind) => {
    const [download] = await Promise.all([page.waitForEvent('download'), page.click(`[data-name="save-${kind}"]`)]);
    return readFileSync(await download.path());
  };
  const json = JSON.parse(await saved('JSON'));
  const [last, head] = [layers().length - 1, layers().at(-1).heads[0]];
  assert.equal(json.layer, last);
  json.weights.flat().forEach((x, n) => assert.ok(Math.abs(x - head.weights.flat()[n]) < 1e-12));
  const csv = (await saved('CSV')).toString().trim().split('\n');
  const all = readFileSync(join(out, 'all.csv'), 'utf8').split('\n');
  const wanted = all.filter((line) => line.startsWith(`original,Input - Input,${last},0,`));
  assert.equal(csv[0], all[0]);
  assert.equal(csv.length - 1, wanted.length);
  csv.slice(1).forEach((line, n) => {
    const [ours, theirs] = [line, wanted[n]].map((text) => text.split(','));
    assert.equal(ours.slice(0, -2).join(), theirs.slice(0, -2).join());
    assert.ok(Math.abs(ours.at(-2) - theirs.at(-2)) <= 1e-9 && Math.abs(ours.at(-1) / theirs.at(-1) - 1) < 1e-6);
  });
  const svg = (await saved('SVG')).toString();
  assert.ok(svg.startsWith('<svg') && svg.includes('>it</text>') && svg.includes('<line'));
  const png = await saved('PNG');
  assert.equal(png.subarray(1, 4).toString(), 'PNG');
  assert.ok(png.length > 5000);
  assert.deepEqual(wrong, []);
  await page.close();
});

for (const width of [1280, 400]) {
  for (const colorScheme of ['light', 'dark']) {
    test(`fits ${width} pixels, ${colorScheme}`, async () => {
      const { page, wrong } = await open({ viewport: { width, height: 900 }, colorScheme });
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
      // Something is drawn in every canvas that can be seen.
      await page.waitForTimeout(500);
      const empty = await page.$$eval('#lines canvas, .multiples canvas, .pair canvas', (all) => all.filter((canvas) => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size < 3;
      }).length);
      assert.equal(empty, 0);
      if (process.env.SHOTS) {
        mkdirSync(process.env.SHOTS, { recursive: true });
        await page.screenshot({ path: join(process.env.SHOTS, `attention-${width}-${colorScheme}.png`), fullPage: true });
      }
      assert.deepEqual(wrong, []);
      await page.close();
    });
  }
}
