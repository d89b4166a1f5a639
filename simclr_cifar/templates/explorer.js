'use strict';

// What the explorers on the page do. Names of classes are anyone's: they become text and attributes, never markup.
{
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  const describe = (data, number) => `${data.classes[data.labels[number]]}, ${data.split} image ${data.indices[number]}`;

  const picture = (data, number, size, label = describe(data, number)) => {
    const place = `--column: ${number % data.columns}; --row: ${Math.floor(number / data.columns)}`;
    const attributes = { class: 'picture', role: 'img', 'aria-label': label, title: label };
    return element('span', { ...attributes, style: `${place}; --size: ${size}` });
  };

  const pairRow = (data, [query, neighbour, similarity]) =>
    element(
      'li',
      {},
      picture(data, query, 80),
      element('span', { class: 'arrow', 'aria-hidden': 'true' }, '→'),
      picture(data, neighbour, 80),
      element(
        'span',
        { class: 'facts' },
        element('span', {}, `${data.classes[data.labels[query]]} → ${data.classes[data.labels[neighbour]]}`),
        element('span', {}, `similarity ${similarity.toFixed(4)}`),
        element('span', {}, `${data.split} ${data.indices[query]} → ${data.indices[neighbour]}`),
      ),
    );

  const startConfusion = (root, data) => {
    const table = root.querySelector('.confusion.pairs');
    const panel = root.querySelector('.matrices .panel');
    const cells = [...table.querySelectorAll('button')];
    const links = [...root.querySelectorAll('.mistakes button')];
    const size = data.classes.length;
    // The panel keeps the height of the fullest cell, so that nothing below it moves.
    panel.style.setProperty('--pairs', Math.max(1, ...data.cells.map((pairs) => pairs.length)));
    let pinned;
    let shown;

    const show = (number) => {
      if (number === shown) return;
      shown = number;
      const row = Math.floor(number / size);
      const [query, found] = [data.classes[row], data.classes[number % size]];
      const count = data.counts[row][number % size];
      const share = count / Math.max(1, data.counts[row].reduce((sum, value) => sum + value, 0));
      const pairs = data.cells[number];
      const title = `${query} → ${found}: ${percent(share)} of ${query}'s neighbours, ${count.toLocaleString('en')}`;
      const rest = pairs.length ? '; the most similar:' : count ? '; no pairs were kept.' : ': there are none.';
      panel.replaceChildren(
        element('p', {}, title + rest),
        element('ol', { class: 'pair-list' }, ...pairs.map((pair) => pairRow(data, pair))),
      );
      cells.forEach((cell, other) => cell.classList.toggle('shown', other === number));
    };

    const pin = (number) => {
      pinned = number;
      cells.forEach((cell, other) => {
        cell.setAttribute('aria-pressed', other === number);
        cell.tabIndex = other === number ? 0 : -1;
      });
      for (const link of links) link.setAttribute('aria-pressed', Number(link.dataset.cell) === number);
      show(number);
    };

    const listen = (area, numberOf) => {
      const on = (act, ...types) => {
        for (const type of types) {
          area.addEventListener(type, (event) => {
            const number = numberOf(event.target);
            if (number >= 0) act(number);
          });
        }
      };
      on(show, 'pointerover', 'focusin');
      on(pin, 'click');
      for (const type of ['pointerleave', 'focusout']) area.addEventListener(type, () => show(pinned));
    };
    listen(table, (target) => cells.indexOf(target));
    const list = root.querySelector('.mistakes');
    if (list) listen(list, (target) => Number(target.closest('button')?.dataset.cell ?? -1));

    table.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -size, ArrowDown: size }[event.key];
      const next = step && cells[cells.indexOf(event.target) + step];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
    pin(links.length ? Number(links[0].dataset.cell) : 0);
  };

  const startGallery = (root, data) => {
    const gallery = root.querySelector('.gallery');
    const filters = root.querySelector('.filters');
    const hasClasses = data.classes.length > 1;
    const rows = data.gallery.map(({ query, neighbours, similarities }) => {
      const label = data.labels[query];
      const right = neighbours.filter((neighbour) => data.labels[neighbour] === label).length;
      const verdict = 2 * right >= neighbours.length ? 'right' : 'wrong';
      const found = neighbours.map((neighbour, rank) => {
        const same = data.labels[neighbour] === label;
        const caption = `${describe(data, neighbour)}, similarity ${similarities[rank].toFixed(4)}`;
        return element(
          'span',
          hasClasses ? { class: same ? 'right' : 'wrong' } : {},
          picture(data, neighbour, 64, same ? caption : `✗ ${caption}`),
          element('small', {}, hasClasses ? data.classes[data.labels[neighbour]] : similarities[rank].toFixed(4)),
        );
      });
      const score = element('b', { class: verdict }, `${right} of ${neighbours.length}`);
      const named = hasClasses ? [data.classes[label], score] : [`${data.split} image ${data.indices[query]}`];
      const who = element('span', { class: 'who' }, ...named);
      const row = element('div', { class: 'query' }, picture(data, query, 64), who);
      row.append(element('div', { class: 'found' }, ...found));
      return { row, label, verdict };
    });
    gallery.replaceChildren(...rows.map(({ row }) => row));
    if (!hasClasses) return;

    const filter = () => {
      const { class: chosen, verdict: wanted } = Object.fromEntries(new FormData(filters));
      let count = 0;
      for (const { row, label, verdict } of rows) {
        row.hidden = (chosen !== '' && Number(chosen) !== label) || (wanted !== '' && wanted !== verdict);
        count += !row.hidden;
      }
      filters.querySelector('output').value = `${count} of ${rows.length} queries`;
      gallery.scrollTop = 0;
    };
    filters.addEventListener('change', filter);
    filters.addEventListener('submit', (event) => event.preventDefault());
    filters.reset();
    filters.hidden = false;
    filter();
  };

  const startProjection = (root, data) => {
    const drawing = root.querySelector('.projection svg');
    const ring = drawing.querySelector('.ring');
    const panel = root.querySelector('.point');
    const circles = drawing.querySelectorAll('.points circle');
    const legend = [...root.querySelectorAll('.legend button')];
    let shown = -1;

    const show = (number) => {
      if (number < 0 || number === shown) return;
      shown = number;
      const { place, picture: shownPicture, vote } = data.points[number];
      const label = data.labels[shownPicture];
      ring.setAttribute('cx', place[0]);
      ring.setAttribute('cy', place[1]);
      ring.setAttribute('visibility', 'visible');
      const facts = [
        element('b', {}, data.classes[label]),
        element('span', { class: `key ${vote === label ? 'right' : 'wrong'}` }, `vote: ${data.classes[vote]}`),
        element('span', {}, `${data.split} image ${data.indices[shownPicture]}`),
      ];
      panel.replaceChildren(
        picture(data, shownPicture, 160),
        element('p', { class: 'facts' }, ...(data.classes.length > 1 ? facts : facts.slice(-1))),
      );
    };

    // The nearest point by a cost of the way to it, infinite where it is out of the question.
    const nearest = (x, y, cost) => {
      let [best, found] = [Infinity, -1];
      data.points.forEach(({ place }, number) => {
        if (circles[number].classList.contains('dim')) return;
        const value = cost(place[0] - x, place[1] - y);
        if (value < best) [best, found] = [value, number];
      });
      return found;
    };

    const point = (event) => {
      const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
      show(nearest(x, y, (right, down) => (Math.hypot(right, down) < 24 ? Math.hypot(right, down) : Infinity)));
    };
    drawing.addEventListener('pointermove', point);
    drawing.addEventListener('pointerdown', point);
    drawing.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const { width, height } = drawing.viewBox.baseVal;
      const [x, y] = shown < 0 ? [width / 2, height / 2] : data.points[shown].place;
      const ahead = (right, down) => {
        const along = right * step[0] + down * step[1];
        return along > 0 ? along + 2 * Math.abs(right * step[1] + down * step[0]) : Infinity;
      };
      show(nearest(x, y, ahead));
    });

    for (const button of legend) {
      button.addEventListener('click', () => {
        button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true');
        const pressed = legend.map((each) => each.getAttribute('aria-pressed') === 'true');
        data.points.forEach(({ picture: number }, position) => {
          circles[position].classList.toggle('dim', pressed.includes(true) && !pressed[data.labels[number]]);
        });
      });
    }
  };

  for (const root of document.querySelectorAll('.explorer')) {
    const data = JSON.parse(root.querySelector('.data').textContent);
    if (data.classes.length > 1) startConfusion(root, data);
    startGallery(root, data);
    startProjection(root, data);
  }
}
