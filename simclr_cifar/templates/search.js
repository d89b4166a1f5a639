'use strict';

const byId = (id) => document.getElementById(id);
const noClass = 'in no folder';
let question = null; // What was asked last: a row of the index, or a file.
let asking = 0;
let first = 0;
let version = ''; // Of the index: its rows are others in another.

const pictureOf = (row) => `picture/${row}?v=${version}`;

async function ask(path, options) {
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function say(text, none = false) {
  byId('status').textContent = text;
  byId('status').classList.toggle('none', none);
}

function nameOf(path) {
  return path.split('/').slice(-2).join('/');
}

function show(matches, withSimilarity) {
  byId('found').replaceChildren(...matches.map((match) => {
    const item = document.createElement('li');
    const button = document.createElement('button');
    button.type = 'button';
    button.title = match.path;
    const image = document.createElement('img');
    image.src = pictureOf(match.row);
    image.alt = nameOf(match.path);
    image.loading = 'lazy';
    const line = document.createElement('span');
    line.className = 'line';
    const label = document.createElement('span');
    label.textContent = match.class || '';
    line.append(label);
    if (withSimilarity) {
      const similarity = document.createElement('b');
      similarity.textContent = match.similarity.toFixed(3);
      line.append(similarity);
    }
    const path = document.createElement('small');
    path.textContent = nameOf(match.path);
    button.append(image, line, path);
    button.addEventListener('click', () => go(match.row));
    item.append(button);
    return item;
  }));
}

function show_asked(address, alt) {
  const image = byId('asked');
  if (image.src.startsWith('blob:')) URL.revokeObjectURL(image.src);
  image.hidden = !address;
  image.alt = alt;
  if (address) image.src = address;
}

async function answer() {
  if (question === null) return begin();
  const number = ++asking;
  const choices = new URLSearchParams({ k: byId('k').value });
  if (byId('class').value) choices.set('class', byId('class').value.slice(1));
  say('Looking …');
  try {
    const sent = question instanceof Blob;
    const found = sent
      ? await ask(`like?${choices}`, { method: 'POST', body: question })
      : await ask(`like/${question}?${choices}`);
    if (number !== asking) return; // Another question was asked meanwhile.
    const name = sent ? question.name || 'the picture' : nameOf(found.asked.path);
    if (!sent) show_asked(pictureOf(question), name);
    byId('found').classList.toggle('faint', !found.known);
    if (found.known) say(`The ${found.matches.length} pictures most like ${name}`);
    else say(`No match: nothing here is like ${name} (${found.nearness.toFixed(3)}, below ${found.threshold.toFixed(3)}). The nearest:`, true);
    show(found.matches, true);
  } catch (error) {
    if (number !== asking) return;
    show([], false);
    say(error.message, true);
  }
}

function go(row) {
  const hash = `#${version}-${row}`;
  if (location.hash === hash) return answer();
  location.hash = hash; // So that one can go back.
}

function take(file) {
  if (!file) return;
  question = file;
  show_asked(URL.createObjectURL(file), file.name || 'the picture');
  history.replaceState(null, '', location.pathname);
  window.scrollTo({ top: 0 });
  answer();
}

async function begin() {
  const number = ++asking;
  show_asked('', '');
  try {
    const { matches } = await ask('some');
    if (number !== asking) return;
    const shown = matches.map((_, place) => matches[(place + first) % matches.length]).slice(0, 10);
    byId('again').hidden = matches.length <= 10;
    byId('found').classList.remove('faint');
    show(shown, false);
    say('Choose one of these, or ask with a picture of your own');
  } catch (error) {
    if (number === asking) say(error.message, true);
  }
}

function follow() {
  const [of, row] = location.hash.slice(1).split('-');
  question = of === version && /^\d+$/.test(row) ? Number(row) : null;
  window.scrollTo({ top: 0 });
  answer();
}

byId('file').addEventListener('change', (event) => {
  take(event.target.files[0]);
  event.target.value = ''; // So that it can be chosen again.
});
for (const name of ['class', 'k']) byId(name).addEventListener('change', answer);
byId('again').addEventListener('click', () => {
  first += 10;
  question = null;
  history.replaceState(null, '', location.pathname);
  begin();
});
document.addEventListener('dragover', (event) => {
  event.preventDefault();
  byId('drop').classList.add('over');
});
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) byId('drop').classList.remove('over');
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  byId('drop').classList.remove('over');
  take([...event.dataTransfer.files][0]);
});
document.addEventListener('paste', (event) => take([...event.clipboardData.files][0]));
window.addEventListener('hashchange', follow);

// The map.

const canvas = byId('canvas');
const points = [];
const colours = new Map();
const largest = 40;
const view = { scale: 1, x: 0, y: 0 };
const fingers = new Map();
let moved = false;

function place(point) {
  const side = Math.min(canvas.clientWidth, canvas.clientHeight) - 24;
  const left = (canvas.clientWidth - side) / 2;
  const top = (canvas.clientHeight - side) / 2;
  return [(left + point.x * side) * view.scale + view.x, (top + point.y * side) * view.scale + view.y];
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const context = canvas.getContext('2d');
  context.scale(ratio, ratio);
  const radius = Math.min(2.5 * Math.sqrt(view.scale), 8);
  context.globalAlpha = 0.8;
  for (const point of points) {
    const [x, y] = place(point);
    context.fillStyle = colours.get(point.class);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }
}

function scale_by(factor, x, y) {
  const scale = Math.min(Math.max(view.scale * factor, 1), largest);
  const by = scale / view.scale;
  Object.assign(view, { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by });
  if (scale === 1) Object.assign(view, { x: 0, y: 0 });
  draw();
}

function nearest(event) {
  let best = null;
  let least = 15;
  for (const point of points) {
    const [x, y] = place(point);
    const distance = Math.hypot(x - event.offsetX, y - event.offsetY);
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

function hint(point) {
  const figure = byId('near');
  figure.hidden = !point;
  if (!point) return;
  const [x, y] = place(point);
  figure.querySelector('img').src = pictureOf(point.row);
  figure.querySelector('figcaption').textContent = point.class || noClass;
  figure.style.left = `${Math.min(Math.max(x + 12, 0), canvas.clientWidth - figure.offsetWidth)}px`;
  figure.style.top = `${Math.min(Math.max(y + 12, 0), canvas.clientHeight - figure.offsetHeight)}px`;
}

canvas.addEventListener('wheel', (event) => {
  // At either end the page scrolls.
  if (event.deltaY < 0 ? view.scale >= largest : view.scale <= 1) return;
  event.preventDefault();
  scale_by(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener('pointerdown', (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  moved = fingers.size > 1;
});
canvas.addEventListener('pointermove', (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return hint(nearest(event));
  const now = [event.offsetX, event.offsetY];
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, where]) => where);
    const apart = (where) => Math.hypot(where[0] - other[0], where[1] - other[1]);
    scale_by(apart(now) / Math.max(apart(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  } else {
    if (!moved && Math.hypot(now[0] - before[0], now[1] - before[1]) < 4) return;
    view.x += now[0] - before[0];
    view.y += now[1] - before[1];
    draw();
  }
  moved = true;
  fingers.set(event.pointerId, now);
  hint(null);
});
canvas.addEventListener('pointerup', (event) => {
  const point = moved || !fingers.has(event.pointerId) ? null : nearest(event);
  fingers.delete(event.pointerId);
  if (point) go(point.row);
});
canvas.addEventListener('pointercancel', (event) => fingers.delete(event.pointerId));
canvas.addEventListener('pointerleave', () => hint(null));
canvas.addEventListener('keydown', (event) => {
  const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
  const factor = { '+': 1.25, '=': 1.25, '-': 0.8 }[event.key];
  if (factor) scale_by(factor, canvas.clientWidth / 2, canvas.clientHeight / 2);
  else if (steps[event.key]) {
    view.x += steps[event.key][0];
    view.y += steps[event.key][1];
    draw();
  } else return;
  event.preventDefault();
});
new ResizeObserver(draw).observe(canvas);

async function start() {
  try {
    const about = await ask('about');
    version = about.version;
    follow();
    const classes = Object.entries(about.classes);
    byId('about').textContent = `${about.pictures.toLocaleString('en')} pictures from ${about.sources.join(', ')}`;
    const style = getComputedStyle(document.documentElement);
    classes.forEach(([name, count], number) => {
      const few = classes.length <= 10;
      colours.set(name, few ? style.getPropertyValue(`--class-${number}`) : `hsl(${(360 * number) / classes.length} 65% 50%)`);
      // Marked, as '' is a class, too.
      byId('class').append(new Option(`${name || noClass} (${count.toLocaleString('en')})`, `=${name}`));
    });
    if (classes.length > 1) {
      byId('legend').append(...classes.map(([name]) => {
        const item = document.createElement('li');
        const dot = document.createElement('span');
        dot.style.background = colours.get(name);
        item.append(dot, name || noClass);
        return item;
      }));
    }
    points.push(...await ask('map'));
    byId('map-status').hidden = true;
    byId('drawn').hidden = false;
    draw();
  } catch (error) {
    byId('map-status').textContent = error.message;
    if (!version) say(error.message, true);
  }
}

start();
