// State, its link, and data: what every other part stands on. Names of libraries: preact with htm, and uPlot.
'use strict';
const { html, render, useState, useEffect, useLayoutEffect, useMemo, useRef } = window.htmPreact;

// What the page was made with: titles of values and how they are colored.
const META = JSON.parse(document.getElementById('meta').textContent);
const VALUES = META.values;

// ---- data ------------------------------------------------------------------------------------------------------------
// A block of data is compressed JSON. It stands in the page, or in a file beside it, or a server has it.
const IS_SERVED = META.served;
const cache = new Map();
const CACHED = 400;

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

// Files beside the page are scripts, since a page that is opened from disk may read nothing else; each calls this.
const beside = new Map();
window.appoPage = (blocks) => {
  for (const [key, block] of Object.entries(blocks)) beside.set(key, block);
};

function loadScript(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = path;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${path} is missing: it must lie beside this page`));
    document.head.append(script);
  });
}

async function fetchBlock(key) {
  if (IS_SERVED) {
    const reply = await fetch(`api/${key}`);
    if (!reply.ok) throw new Error(`${key}: ${await reply.text()}`);
    return reply.json();
  }
  const element = document.getElementById(`block:${key}`);
  if (element) return unpack(element.textContent);
  const path = META.files[key];
  if (path === undefined) throw new Error(`${key} is not in this page; it was written without it`);
  if (!beside.has(key)) await loadScript(path);
  const block = beside.get(key);
  beside.delete(key);
  return unpack(block);
}

function load(key) {
  if (!cache.has(key)) {
    const value = fetchBlock(key);
    value.catch(() => cache.delete(key));
    cache.set(key, value);
    if (cache.size > CACHED) cache.delete(cache.keys().next().value);
  }
  return cache.get(key);
}

function forget(prefix) {
  for (const key of [...cache.keys()]) if (key.startsWith(prefix)) cache.delete(key);
}

// The value of a block once it is there; `error` tells why it is not.
function useBlock(key, version = 0) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let isCurrent = true;
    if (key !== null) {
      load(key).then(
        (value) => isCurrent && setFound({ key, value }),
        (error) => isCurrent && setFound({ key, error: error.message }),
      );
    }
    return () => {
      isCurrent = false;
    };
  }, [key, version]);
  return found.key === key ? found : {};
}

// ---- state -----------------------------------------------------------------------------------------------------------
// All of it stands in the link, so that every view can be sent to somebody.
const DEFAULTS = {
  tab: 'trees', // or curves, compare
  run: '0',
  step: '', // such as iteration-5; empty: the last one
  q: '', // id of the prompt; empty: the first one
  t: '', // id of the trajectory; empty: the first root
  v: VALUES[0].name,
  min: '', // filters
  max: '',
  tool: '',
  failure: '',
  short: '',
  long: '',
  kind: '',
  s: '', // text that is searched
  run2: '', // the other side of a comparison
  step2: '',
  t2: '',
};

function readLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
}

function writeLink(state) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== DEFAULTS[name]) given.set(name, value);
  return `#${given}`;
}

// ---- numbers ---------------------------------------------------------------------------------------------------------
function number(value, digits = 3) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value)) return value.toLocaleString('en').replace('-', '−');
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString('en').replace('-', '−');
  const text = size < 0.001 ? value.toExponential(1) : value.toPrecision(digits);
  return text.replace('-', '−');
}

const reward = (value) => (value === null || value === undefined ? '–' : value.toFixed(2).replace('-', '−'));

const stepName = (step) => `${step.stage} ${step.number}`;

// ---- colors ----------------------------------------------------------------------------------------------------------
// Washes that read on light and dark paper alike: orange is much, or more than the middle; blue is less.
const MORE = '230, 126, 20';
const LESS = '40, 120, 230';

const middle = (value) => (value.scale === 'around_one' ? 1 : 0);

// The size that is colored fully: nearly the largest of a tree, so that one outlier does not pale the rest.
function fullSize(nodes, value) {
  const sizes = [];
  for (const node of nodes) {
    for (const each of node.values[value.name] ?? []) if (each !== null) sizes.push(Math.abs(each - middle(value)));
  }
  if (!sizes.length) return 0;
  sizes.sort((a, b) => a - b);
  return sizes[Math.ceil(0.98 * (sizes.length - 1))] || sizes[sizes.length - 1];
}

function wash(each, value, full) {
  if (each === null || each === undefined || !full) return '';
  const distance = each - middle(value);
  const strength = Math.min(1, Math.abs(distance) / full) * 0.75;
  return strength < 0.02 ? '' : `rgba(${distance < 0 ? LESS : MORE}, ${strength.toFixed(2)})`;
}

// From the lowest reward of a question to its highest: a share, and its color.
function rewardScale(nodes) {
  const rewards = nodes.map((node) => node.reward).filter((each) => each !== null);
  const [low, high] = [Math.min(...rewards), Math.max(...rewards)];
  const share = (each) => (each === null ? 0.5 : high > low ? (each - low) / (high - low) : each > 0 ? 1 : 0);
  return { share, color: (each) => `color-mix(in oklab, var(--good) ${Math.round(100 * share(each))}%, var(--bad))` };
}
