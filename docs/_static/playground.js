// The figure of docs/concept.md: Algorithm 1 on a quadratic, with sliders. Plain JavaScript, no library, no server.
// tests/docs/test_playground.py runs it in a browser and compares window.simulate with the NumPy oracle.
'use strict';

(() => {
  const DIM = 16; // of the quadratic F(x) = ½ Σ CURVATURE[i] x[i]²; the picture shows the first and the last coordinate
  const STEPS = 200;
  const CURVATURE = Array.from({ length: DIM }, (_, i) => 6 ** (i / (DIM - 1)));
  const START = CURVATURE.map((_, i) => (i === 0 ? -3 : i === DIM - 1 ? 1.4 : 1));

  // --- The algorithm ----------------------------------------------------------------------------------------

  // Uniform numbers in [0, 1), the same for the same seed in every browser (mulberry32).
  function uniforms(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let bits = Math.imul(state ^ (state >>> 15), state | 1);
      bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
      return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  const mean = (vectors) => vectors[0].map((_, i) => vectors.reduce((sum, v) => sum + v[i], 0) / vectors.length);
  const squaredNorm = (vector) => vector.reduce((sum, v) => sum + v * v, 0);
  const loss = (point) => 0.5 * point.reduce((sum, v, i) => sum + CURVATURE[i] * v * v, 0);

  // Algorithm 1 in optax's signs: r_k = -e_k is what worker k has not sent yet, and updates are added.
  // Returns x and y [STEPS + 1][DIM] and, before each step, the residuals and detached points [STEPS][workers][DIM].
  function simulate({ detach, ratio, workers, noise, learningRate, momentum, seed }) {
    const uniform = uniforms(seed);
    const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    const block = DIM / ratio;
    let x = START.slice(); // line 2
    const zeros = () => Array.from({ length: workers }, () => new Array(DIM).fill(0));
    const residuals = zeros();
    const momenta = zeros();
    const path = { x: [x], y: [x], residuals: [], points: [] };
    for (let t = 0; t < STEPS; t++) { // line 3
      const start = block * Math.floor(ratio * uniform()); // one draw for all workers
      path.residuals.push(residuals.map((r) => r.slice()));
      const points = [];
      const sent = [];
      for (let k = 0; k < workers; k++) { // line 4
        const point = x.map((v, i) => v + detach * residuals[k][i]);
        const gradient = point.map((v, i) => CURVATURE[i] * v + noise * normal()); // lines 5 and 6
        momenta[k] = momenta[k].map((m, i) => momentum * m + gradient[i]); // Eq. 11
        const pending = residuals[k].map((r, i) => r - learningRate * momenta[k][i]); // line 7
        const isSent = (i) => i >= start && i < start + block;
        sent.push(pending.map((p, i) => (isSent(i) ? p : 0)));
        residuals[k] = pending.map((p, i) => (isSent(i) ? 0 : p)); // line 8
        points.push(point);
      }
      const step = mean(sent); // line 9
      x = x.map((v, i) => v + step[i]); // line 10
      const waiting = mean(residuals);
      path.x.push(x);
      path.y.push(x.map((v, i) => v + waiting[i])); // line 13
      path.points.push(points);
    }
    return path;
  }

  window.simulate = simulate;

  // --- The figure -------------------------------------------------------------------------------------------

  const POWERS = [1, 2, 4, 8, 16];
  const range = (low, high, step) =>
    Array.from({ length: Math.round((high - low) / step) + 1 }, (_, i) => Number((low + i * step).toFixed(3)));
  const SLIDERS = [
    { name: 'detach', label: 'λ, detach', values: range(0, 1, 0.05), initial: 0.3 },
    { name: 'ratio', label: 'ratio', values: POWERS, initial: 4 },
    { name: 'workers', label: 'workers', values: POWERS, initial: 8 },
    { name: 'noise', label: 'gradient noise', values: range(0, 6, 0.5), initial: 3 },
    { name: 'learningRate', label: 'learning rate', values: range(0.005, 0.1, 0.005), initial: 0.02 },
    { name: 'momentum', label: 'momentum', values: range(0, 0.9, 0.1), initial: 0.5 },
  ];
  const VIEW = { left: -3.6, right: 1.6, bottom: -1.1, top: 1.7 };

  function element(name, attributes = {}, ...children) {
    const svg = ['svg', 'title', 'g', 'path', 'ellipse', 'circle'].includes(name);
    const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const shown = (point) => [point[0], point[DIM - 1]];
  // A diverging path leaves the picture; SVG cannot draw it to infinity.
  const clamp = (v) => Math.max(-1e3, Math.min(1e3, Number.isFinite(v) ? v : 1e3)).toFixed(3);
  const place = (point) => shown(point).map(clamp).join(' ');
  const line = (points) => 'M' + points.map(place).join('L');
  const dots = (points) => points.map((p) => `M${place(p)}h0`).join('');

  function makePicture() {
    const title = element('title', {}, 'Paths of x and y and the detached points on the contours of a quadratic');
    const plane = element('g', { transform: 'scale(1 -1)' });
    for (let level = 1; level <= 8; level++) {
      const height = 0.08 * level * level; // equidistant ellipses
      const radius = (i) => Math.sqrt((2 * height) / CURVATURE[i]) * 1.4;
      plane.append(element('ellipse', { class: 'contour', rx: radius(0), ry: radius(DIM - 1) }));
    }
    plane.append(element('path', { class: 'optimum', d: 'M-0.06 0H0.06M0 -0.06V0.06' }));
    const paths = {};
    for (const name of ['points', 'y', 'x']) {
      paths[name] = element('path', { class: name });
      plane.append(paths[name]);
    }
    const box = [VIEW.left, -VIEW.top, VIEW.right - VIEW.left, VIEW.top - VIEW.bottom].join(' ');
    return { svg: element('svg', { viewBox: box, role: 'img' }, title, plane), paths };
  }

  function makeSlider({ name, label, values, initial }, onInput) {
    const output = element('output');
    const input = element('input', { type: 'range', name, min: 0, max: values.length - 1, step: 1 });
    input.value = values.indexOf(initial);
    const read = () => values[Number(input.value)];
    const show = () => {
      output.textContent = read();
      input.setAttribute('aria-valuetext', `${label} ${read()}`);
    };
    input.addEventListener('input', () => { show(); onInput(); });
    show();
    return { node: element('label', {}, element('span', {}, label), input, output), read };
  }

  // What the run shows, in numbers: losses, and Eq. 9's mean_k ‖x + λ r_k - y‖² with the λ that minimises it.
  function describe({ x, y, residuals, points }) {
    const last = STEPS;
    if (!(loss(y[last]) < 10 * loss(START))) {
      return 'Diverges: the learning rate is too large for updates that wait so long.';
    }
    let distance = 0, own = 0, common = 0;
    residuals.forEach((all, t) => {
      common += squaredNorm(mean(all));
      own += squaredNorm(all.flat()) / all.length;
      distance += squaredNorm(points[t].flatMap((p) => p.map((v, i) => v - y[t][i]))) / all.length;
    });
    const figures = `After ${STEPS} steps F(x) = ${loss(x[last]).toFixed(2)} and F(y) = ${loss(y[last]).toFixed(2)}; ` +
      `at the start F = ${loss(START).toFixed(1)}. `;
    if (own === 0) return figures + 'Everything is sent: x, y and the detached points are the same.';
    return figures + `The detached points are at a mean squared distance of ${(distance / STEPS).toFixed(2)} from y ` +
      `(Eq. 9); with these residuals λ = ${(common / own).toFixed(2)} would minimise it.`;
  }

  function build(container) {
    let seed = 1;
    const { svg, paths } = makePicture();
    const summary = element('p', { class: 'summary', 'aria-live': 'polite' });
    const update = () => {
      const settings = Object.fromEntries(SLIDERS.map(({ name }, i) => [name, sliders[i].read()]));
      const run = simulate({ ...settings, seed });
      paths.x.setAttribute('d', line(run.x));
      paths.y.setAttribute('d', line(run.y));
      paths.points.setAttribute('d', dots(run.points.flat()));
      summary.textContent = describe(run);
    };
    const sliders = SLIDERS.map((slider) => makeSlider(slider, update));
    const again = element('button', { type: 'button' }, 'Other noise and blocks');
    again.addEventListener('click', () => { seed += 1; update(); });
    const legend = element('p', { class: 'legend' },
      element('span', { class: 'x' }, 'x, the parameters (DEF-A)'),
      element('span', { class: 'y' }, 'y = x + mean r_k (DEF)'),
      element('span', { class: 'points' }, 'x + λ r_k, the detached points'));
    const controls = element('div', { class: 'controls' }, ...sliders.map((slider) => slider.node), again);
    container.replaceChildren(svg, legend, controls, summary);
    update();
  }

  const start = () => document.querySelectorAll('.playground').forEach(build);
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', start);
  else start();
})();
