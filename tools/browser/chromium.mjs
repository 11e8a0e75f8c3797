// Chromium as the tests start it, and the program that they test.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

/** The repository. */
export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** A new folder for what a test writes. */
export const folder = () => mkdtempSync(join(tmpdir(), 'conjure-browser-'));

/** Runs conjure in the repository. */
export function conjure(...args) {
  const built = ['target/release/conjure', 'target/debug/conjure'].map((path) => join(root, path)).find(existsSync);
  const program = process.env.CONJURE ?? built;
  if (!program) throw new Error('conjure is not built: run `cargo build`, or say where it is with CONJURE');
  return execFileSync(program, args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** A browser without a network of its own. */
export const launch = () => chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});

/** A page of attention, and what it must never do: fail, complain, or ask for anything. */
export async function openPage(browser, path, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, acceptDownloads: true, ...options });
  const wrong = [];
  page.on('pageerror', (error) => wrong.push(error.message));
  page.on('console', (message) => wrong.push(message.text()));
  page.on('request', (request) => { if (!/^(file|data|blob):/.test(request.url())) wrong.push(request.url()); });
  await page.goto(`file://${path}`);
  await page.waitForSelector('.steps table');
  return { page, wrong };
}

/** Waits until what was chosen is drawn. */
export const settle = (page) => page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));

/** Presses one of the page's controls, by its name. */
export async function choose(page, name) {
  await page.click(`.controls [data-name="${name}"]`);
  await settle(page);
}
