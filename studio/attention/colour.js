// Colours that follow the reader's choice of light or dark.
import { announce } from './data.js';

const RAMPS = {
  light: ['#ffffff', '#c9def9', '#4f8fe6', '#123a7c'],
  dark: ['#14181f', '#1d3f70', '#4f93ee', '#eaf3ff'],
};
const CHANGES = {
  light: ['#a8480b', '#f0b083', '#ffffff', '#8ab8f2', '#15509e'],
  dark: ['#ffab70', '#8f4a17', '#14181f', '#27568f', '#8fc0ff'],
};
const dark = matchMedia('(prefers-color-scheme: dark)');
let tables = {};

dark.addEventListener('change', () => {
  tables = {};
  announce();
});

const parts = (hex) => [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));

function interpolated(stops) {
  return Array.from({ length: 256 }, (_, n) => {
    const x = (n / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(x), stops.length - 2);
    const [a, b] = [parts(stops[left]), parts(stops[left + 1])];
    return a.map((value, c) => Math.round(value + (b[c] - value) * (x - left)));
  });
}

function lookUp(kind, stops, x) {
  const theme = dark.matches ? 'dark' : 'light';
  tables[kind] ??= interpolated(stops[theme]);
  return tables[kind][Math.min(255, Math.max(0, Math.round(x * 255)))];
}

/** Red, green and blue of a weight from 0 to 1. The square root keeps small weights visible; the legend shows it too. */
export function weightColour(weight) {
  return lookUp('ramp', RAMPS, Math.sqrt(weight));
}

/** Red, green and blue of a difference from -1 to 1. */
export function changeColour(difference) {
  return lookUp('change', CHANGES, 0.5 + 0.5 * Math.sign(difference) * Math.sqrt(Math.abs(difference)));
}

/** As CSS. */
export function css([r, g, b]) {
  return `rgb(${r} ${g} ${b})`;
}

/** A colour for a head; neighbours differ clearly, and all are readable on the page's ground. */
export function headColour(head) {
  const hue = (212 + head * 137.5) % 360;
  return dark.matches ? `hsl(${hue} 80% 68%)` : `hsl(${hue} 72% 40%)`;
}

/** A colour of the page's style. */
export function styleColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
