// Asks for the runs every few seconds and puts them on the page. Whatever
// comes from a run is set as text, never as markup.
'use strict';

const SVG = 'http://www.w3.org/2000/svg';
const DASH = '\u2013';
const TITLES = {
  return: 'Return',
  loss_bellman: 'TD loss',
  feature_dot_product: 'Feature dot product',
  effective_rank: 'Effective rank',
};
// Seconds until the server is asked again after it did not answer.
const RETRY_SECONDS = 3;

const byName = new Map(); // What is on the page of each run.
let shownState = null; // Only runs in this state are shown; null shows all.
let last = null; // The last answer.

const $ = (id) => document.getElementById(id);

function element(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  parent.append(made);
  return made;
}

function svg(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  parent.append(made);
  return made;
}

function number(value) {
  if (value === null) return DASH;
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  const minutes = seconds / 60;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (minutes < 60) return `${Math.round(minutes)} min`;
  if (minutes < 48 * 60) {
    const rest = Math.round(minutes) % 60;
    return `${Math.floor(Math.round(minutes) / 60)} h ${rest} min`;
  }
  return `${(minutes / 60 / 24).toFixed(1)} days`;
}

// Returns the path of a curve in a box of 100 x 30, with a gap where a value
// is not finite.
function path(points) {
  const finite = points.filter((point) => point[1] !== null);
  if (finite.length < 2) return '';
  const steps = finite.map((point) => point[0]);
  const values = finite.map((point) => point[1]);
  const [first, end] = [Math.min(...steps), Math.max(...steps)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const x = (step) => (100 * (step - first)) / (end - first || 1);
  const y = (value) =>
    high === low ? 15 : 28 - (26 * (value - low)) / (high - low);
  let text = '';
  let pen = 'M';
  for (const [step, value] of points) {
    if (value === null) {
      pen = 'M';
    } else {
      text += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = 'L';
    }
  }
  return text;
}

function build(name) {
  const root = element('article', 'run', $('runs'));
  const facts = element('div', 'facts', root);
  const top = element('h2', '', facts);
  const method = element('span', '', top);
  top.append(' ');
  const state = element('span', 'state', top);
  const of = element('p', 'quiet', facts);
  const folder = element('p', 'quiet', facts);
  folder.textContent = name;
  const bar = element('div', 'bar', facts);
  const box = svg(
    'svg', { viewBox: '0 0 100 1', preserveAspectRatio: 'none' }, bar);
  const filled = svg('rect', { width: 0, height: 1 }, box);
  const progress = element('p', 'quiet progress', facts);
  const time = element('p', 'quiet', facts);
  const list = element('dl', 'quantities', root);
  const quantities = {};
  for (const [quantity, heading] of Object.entries(TITLES)) {
    const cell = element('div', quantity, list);
    element('dt', '', cell).textContent = heading;
    const value = element('dd', '', cell);
    const curve = svg('svg', {
      viewBox: '0 0 100 30', preserveAspectRatio: 'none', role: 'img',
    }, cell);
    const title = svg('title', {}, curve);
    const line = svg('path', { d: '' }, curve);
    quantities[quantity] = { value, title, line };
  }
  const error = element('p', 'error', root);
  return {
    root, method, state, of, bar, filled, progress, time, quantities, list,
    error,
  };
}

function progressOf(run) {
  if (run.state === 'unreadable') return '';
  const total = run.total_steps === null
    ? '' : ` of ${run.total_steps.toLocaleString('en')}`;
  const rate = run.steps_per_second === null
    ? '' : `, ${number(run.steps_per_second)}/s`;
  return `${run.steps.toLocaleString('en')}${total} gradient steps${rate}`;
}

function timeOf(run) {
  if (run.state === 'finished') return '';
  const changed = `changed ${duration(run.seconds_since_change)} ago`;
  return run.seconds_left === null
    ? changed : `${duration(run.seconds_left)} left, ${changed}`;
}

// Returns what a curve spans, for the pointer and for screen readers.
function spanOf(points) {
  const values = points.map((point) => point[1]).filter((v) => v !== null);
  if (values.length < 2) return 'no curve';
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return `from ${number(low)} to ${number(high)}`;
}

function show(run, parts) {
  parts.root.className = `run ${run.state}`;
  parts.root.hidden = shownState !== null && run.state !== shownState;
  parts.method.textContent = run.method;
  parts.state.textContent = run.state;
  parts.of.textContent = [
    run.game, run.dataset,
    run.logged_run && `logged run ${run.logged_run}`,
    run.seed && `seed ${run.seed}`,
  ].filter(Boolean).join(', ');
  parts.progress.textContent = progressOf(run);
  parts.time.textContent = timeOf(run);
  parts.bar.hidden = run.total_steps === null;
  parts.filled.setAttribute(
    'width', run.total_steps ? (100 * run.steps) / run.total_steps : 0);
  parts.error.textContent = run.error;
  parts.error.hidden = !run.error;
  parts.list.hidden = Object.values(run.quantities).every(
    (quantity) => !quantity.points.length);
  for (const [quantity, cell] of Object.entries(parts.quantities)) {
    const { last: value, points } = run.quantities[quantity];
    cell.value.textContent =
      value === null && points.length ? 'not finite' : number(value);
    cell.line.setAttribute('d', path(points));
    cell.title.textContent = `${TITLES[quantity]} ${spanOf(points)}`;
  }
}

function showStates(runs) {
  const counts = new Map(); // In the order of the runs.
  for (const { state } of runs) counts.set(state, (counts.get(state) ?? 0) + 1);
  if (!counts.has(shownState)) shownState = null;
  const entries = runs.length ? [[null, runs.length], ...counts] : [];
  const buttons = entries.map(([state, count]) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = `${count} ${state ?? (count === 1 ? 'run' : 'runs')}`;
    button.setAttribute('aria-pressed', String(state === shownState));
    button.dataset.state = state ?? '';
    button.addEventListener('click', () => {
      shownState = state;
      update(last);
    });
    return button;
  });
  // Only what differs is replaced, so that the focus stays where it is.
  const described = (list) =>
    list.map((b) => b.textContent + b.getAttribute('aria-pressed')).join();
  if (described(buttons) !== described([...$('states').children])) {
    const focused = document.activeElement?.dataset?.state;
    $('states').replaceChildren(...buttons);
    buttons.find((b) => b.dataset.state === focused)?.focus();
  }
}

function update(answer) {
  last = answer;
  showStates(answer.runs);
  const there = new Set(answer.runs.map((run) => run.name));
  for (const [name, parts] of byName) {
    if (!there.has(name)) {
      parts.root.remove();
      byName.delete(name);
    }
  }
  answer.runs.forEach((run, place) => {
    if (!byName.has(run.name)) byName.set(run.name, build(run.name));
    const parts = byName.get(run.name);
    show(run, parts);
    const at = $('runs').children[place];
    if (at !== parts.root) $('runs').insertBefore(parts.root, at);
  });
  $('where').textContent = answer.runs.length ? `In ${answer.parent}.` : '';
  $('message').textContent = answer.message;
  $('message').hidden = !answer.message;
  $('report').hidden = !answer.has_report;
}

function clock() {
  return new Date().toLocaleTimeString('en', { hourCycle: 'h23' });
}

async function refresh() {
  let seconds = RETRY_SECONDS;
  try {
    const response = await fetch('runs.json', { cache: 'no-store' });
    if (!response.ok) throw new Error(`it answered ${response.status}`);
    update(await response.json());
    seconds = last.refresh_seconds;
    $('updated').textContent = `Updated at ${clock()}.`;
    $('trouble').hidden = true;
  } catch (error) {
    $('trouble').textContent =
      `The server of this page cannot be reached (${error.message}); ` +
      'what is shown may be old.';
    $('trouble').hidden = false;
  }
  setTimeout(refresh, 1000 * seconds);
}

refresh();
