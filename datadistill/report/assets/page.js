"use strict";
// The report's images and charts, from the JSON in the page. Texts from files go in as text, never as HTML.
document.documentElement.classList.add("js");
const sets = JSON.parse(document.getElementById("data").textContent);
const DEVIATIONS = 2.5;
const CELLS = {s: 48, m: 88, l: 160};

function make(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}
const percent = share => `${(100 * share).toFixed(2)} %`;
const short = value => (value === null || value === undefined ? "-" : String(+value.toPrecision(4)));
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- Pictures: a sheet's PNG becomes levels, and levels become what a canvas shows, in true or in stretched range.

const decoded = new WeakMap();
function pixelsOf(sheet) {
  if (!decoded.has(sheet)) {
    decoded.set(sheet, (async () => {
      const image = new Image();
      image.src = sheet.png === null ? sheet.image.src : `data:image/png;base64,${sheet.png}`;
      await image.decode();
      const canvas = make("canvas", {width: image.naturalWidth, height: image.naturalHeight});
      const context = canvas.getContext("2d", {willReadFrequently: true});
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, canvas.width, canvas.height);
    })());
  }
  return decoded.get(sheet);
}

function paint(canvas, sheet, pixels, index, stretched) {
  const [height, width] = sheet.size, left = (index % sheet.across) * width, top = Math.floor(index / sheet.across) * height;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d"), shown = context.createImageData(width, height);
  const low = sheet.low[index], unit = (sheet.high[index] - low) / 255;
  let sum = 0, squares = 0;
  for (let y = 0, to = 0; y < height; y++) {
    let from = 4 * ((top + y) * pixels.width + left);
    for (let x = 0; x < width; x++, from += 4, to += 4) {
      for (let c = 0; c < 3; c++) {
        const value = low + unit * pixels.data[from + c];
        sum += value;
        squares += value * value;
        shown.data[to + c] = 255 * value;
      }
      shown.data[to + 3] = 255;
    }
  }
  if (stretched) {
    const count = 3 * width * height, mean = sum / count;
    const reach = 2 * DEVIATIONS * Math.max(1e-6, Math.sqrt(Math.max(0, squares / count - mean * mean)));
    for (let y = 0, to = 0; y < height; y++) {
      let from = 4 * ((top + y) * pixels.width + left);
      for (let x = 0; x < width; x++, from += 4, to += 4)
        for (let c = 0; c < 3; c++) shown.data[to + c] = 255 * (0.5 + (low + unit * pixels.data[from + c] - mean) / reach);
    }
  }
  context.putImageData(shown, 0, 0);
}

function paintBars(canvas, soft) {
  const scale = 2, width = canvas.width = Math.max(64, 3 * soft.length) * scale, height = canvas.height = 22 * scale;
  const context = canvas.getContext("2d"), most = Math.max(0, ...soft), least = Math.min(0, ...soft);
  const zero = height * most / (most - least || 1), step = width / soft.length;
  context.fillStyle = colour("--line");
  context.fillRect(0, Math.min(height - 2, zero), width, 2);
  context.fillStyle = colour("--accent");
  soft.forEach((value, k) => {
    const size = value * height / (most - least || 1);
    context.fillRect(k * step, Math.min(zero, zero - size), Math.max(1, step * 0.72), Math.abs(size));
  });
}

class Gallery {
  constructor(set, article) {
    set.sheet.image = article.querySelector(".raw");
    Object.assign(this, {set, article, stretched: true, canvases: [], bars: [], order: []});
    this.slider = article.querySelector(".moment");
    this.moments = set.history ? set.history.steps.length : 0;
    this.places = new Map(set.history ? set.history.places.map((image, place) => [image, place]) : []);
    this.moment = this.moments;
    const counts = set.classes.map((_, k) => set.labels.filter(label => label === k).length);
    this.rows = Math.max(...counts) > 1;
    this.build(counts);
    this.control(set.labels.length > 200 ? "s" : "m");
  }

  build(counts) {
    const sheet = this.article.querySelector(".sheet"), {set} = this;
    sheet.classList.toggle("rows", this.rows);
    sheet.style.setProperty("--deep", Math.max(...counts));
    set.classes.forEach((name, k) => {
      if (!counts[k]) return;
      let place = sheet;
      if (this.rows) {
        place = make("div");
        const heading = make("h3", {title: name}, name, make("small", {}, `${counts[k]} image${counts[k] > 1 ? "s" : ""}`));
        sheet.append(make("div", {className: "class"}, heading, place));
      }
      let number = 0;
      set.labels.forEach((label, index) => {
        if (label === k) place.append(this.picture(index, name, ++number, counts[k]));
      });
    });
  }

  picture(index, name, number, count) {
    const canvas = make("canvas"), title = count > 1 ? `${name}, image ${number} of ${count}` : name;
    const button = make("button", {type: "button", className: "picture", title});
    button.setAttribute("aria-label", `${title}: show it large`);
    if (!this.rows) button.append(make("span", {className: "name"}, name));
    button.append(canvas);
    if (this.set.soft) {
      const bars = make("canvas", {className: "soft"});
      button.append(bars);
      this.bars.push([bars, this.set.soft[index]]);
    }
    button.addEventListener("click", () => large.open(this, index));
    this.canvases[index] = canvas;
    this.order.push(index);
    return button;
  }

  control(size) {
    const form = this.article.querySelector("form"), note = this.article.querySelector(".range-note");
    form.addEventListener("submit", event => event.preventDefault());
    const apply = () => {
      const chosen = new FormData(form);
      const [range, cell] = ["range", "size"].map(word => [...chosen].find(([name]) => name.startsWith(word))[1]);
      this.stretched = range === "stretched";
      this.article.style.setProperty("--cell", `${CELLS[cell]}px`);
      note.textContent = this.stretched
        ? "Stretched: each image in its own contrast, its mean in mid-grey and 2.5 standard deviations to black and white."
        : "True: 0 is black and 1 is white, as in real images; what learned pixels have beyond is cut off.";
      return this.draw();
    };
    form.querySelector(`[value="${size}"]`).checked = true;
    form.addEventListener("change", apply);
    if (this.slider && this.moments) {
      this.slider.addEventListener("input", () => this.go(+this.slider.value));
      form.querySelector(".play").addEventListener("click", () => this.play());
    } else if (this.slider) this.slider.closest(".time").hidden = true;
    this.tell();
    this.ready = apply();
  }

  play() {
    clearInterval(this.timer);
    let moment = 0;
    this.go(moment);
    this.timer = setInterval(() => {
      this.go(++moment);
      if (moment >= this.moments) clearInterval(this.timer);
    }, 160);
  }

  go(moment) {
    this.moment = moment;
    this.slider.value = moment;
    this.tell();
    this.draw();
    large.draw();
  }

  words() {
    const {history} = this.set;
    if (!history || this.moment >= this.moments) return "the images that were kept";
    const accuracy = history.accuracy[this.moment];
    return `step ${history.steps[this.moment].toLocaleString("en")}` + (accuracy === null ? "" : `, held-out ${percent(accuracy)}`);
  }

  tell() {
    if (this.slider) {
      this.article.querySelector("form output").textContent = this.words();
      this.slider.setAttribute("aria-valuetext", this.words());
    }
  }

  source(index) {
    const place = this.places.get(index), past = this.moment < this.moments && place !== undefined;
    return past ? [this.set.history.sheets[this.moment], place] : [this.set.sheet, index];
  }

  async draw() {
    const moment = this.moment, sheets = new Map();
    for (const sheet of [this.set.sheet, ...(moment < this.moments ? [this.set.history.sheets[moment]] : [])])
      sheets.set(sheet, await pixelsOf(sheet));
    if (moment !== this.moment) return;
    this.canvases.forEach((canvas, index) => {
      const [sheet, place] = this.source(index);
      paint(canvas, sheet, sheets.get(sheet), place, this.stretched);
      canvas.parentNode.classList.toggle("still", moment < this.moments && sheet === this.set.sheet);
    });
    this.bars.forEach(([canvas, soft]) => paintBars(canvas, soft));
    this.article.dataset.drawn = String(moment);
  }
}

// ---- One image, large.

const large = {
  dialog: document.querySelector("dialog"),

  start() {
    const find = name => this.dialog.querySelector(name);
    this.slider = find("input");
    find(".close").addEventListener("click", () => this.dialog.close());
    find(".previous").addEventListener("click", () => this.move(-1));
    find(".next").addEventListener("click", () => this.move(1));
    this.slider.addEventListener("input", () => this.gallery.go(+this.slider.value));
    this.dialog.addEventListener("click", event => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("keydown", event => {
      if (event.target === this.slider) return;
      if (event.key === "ArrowLeft") this.move(-1);
      if (event.key === "ArrowRight") this.move(1);
    });
  },

  open(gallery, index) {
    Object.assign(this, {gallery, index});
    this.slider.max = gallery.moments;
    this.dialog.querySelector(".time").hidden = !gallery.moments;
    this.dialog.showModal();
    this.draw();
  },

  move(by) {
    const {order} = this.gallery;
    this.index = order[(order.indexOf(this.index) + by + order.length) % order.length];
    this.draw();
  },

  async draw() {
    if (!this.dialog.open) return;
    const {gallery, index, dialog} = this, {set} = gallery, [figure, real] = dialog.querySelectorAll("figure");
    const [sheet, place] = gallery.source(index);
    dialog.querySelector("h2").textContent = set.classes[set.labels[index]];
    dialog.querySelector("footer span").textContent = `${gallery.order.indexOf(index) + 1} of ${gallery.order.length}`;
    this.slider.value = gallery.moment;
    dialog.querySelector("output").textContent = gallery.words();
    const batches = set.batches[index].map(String).join(", ");
    figure.lastChild.textContent = batches ? `distilled, in batch ${batches}` : "distilled, in no batch";
    paint(figure.firstChild, sheet, await pixelsOf(sheet), place, gallery.stretched);
    real.hidden = !set.nearest;
    if (set.nearest) {
      paint(real.firstChild, set.nearest, await pixelsOf(set.nearest), index, gallery.stretched);
      real.lastChild.textContent = `the nearest training image, of class ${set.nearestLabels[index]}`;
    }
    this.bars(set, set.soft && set.soft[index]);
  },

  bars(set, soft) {
    const place = this.dialog.querySelector(".bars");
    place.replaceChildren();
    place.hidden = !soft;
    if (!soft) return;
    const most = Math.max(0, ...soft), least = Math.min(0, ...soft), unit = 100 / (most - least || 1);
    soft.forEach((value, k) => {
      const bar = make("i");
      bar.style.left = `${(Math.min(0, value) - least) * unit}%`;
      bar.style.width = `${Math.abs(value) * unit}%`;
      place.append(make("span", {title: set.classes[k]}, set.classes[k]), make("div", {}, bar), make("span", {}, short(value)));
    });
  },
};

// ---- Curves, by uPlot.

const plots = [];
// On a log scale of several decades only their edges have lines.
const decades = (u, ticks) => ticks.map(tick => (u.scales.y.max / u.scales.y.min < 30 || Number.isInteger(Math.log10(tick)) ? tick : null));
const FONT = "12px system-ui, sans-serif";

function chart(place, title, unit, xs, series, log, key) {
  const figure = make("div", {className: "chart"}, make("h3", {}, `${title} `, make("small", {}, unit)));
  const plot = make("div", {className: "plot", tabIndex: 0});
  plot.setAttribute("role", "img");
  const drawn = series.filter(one => one.values.some(value => value !== null));
  const ends = drawn.slice(0, 6).map(one => `${one.label}: ${one.say(one.values.findLast(value => value !== null))} at the end`);
  plot.setAttribute("aria-label", `${title} over outer steps. ${ends.join("; ")}. Arrow keys walk along it.`);
  const tip = make("div", {className: "tip", hidden: true});
  figure.append(plot, tip);
  place.append(figure);
  const told = drawn.length > 6 ? [0, 1, 2, 3, 4, 5].map(k => Math.round(k * (drawn.length - 1) / 5)) : drawn.map((_, k) => k);
  const paper = one => (drawn.length > 6 ? `hsl(${205 + 130 * one / (drawn.length - 1)} 55% 52%)` : colour(`--c${one}`));
  const axis = {stroke: () => colour("--soft"), font: FONT, grid: {stroke: () => colour("--line"), width: 1}, ticks: {show: false}};
  const options = {
    width: Math.max(200, plot.clientWidth), height: 220, legend: {show: false},
    padding: [10, 26, 0, 0],
    cursor: {y: false, drag: {x: false, y: false}, sync: {key}, points: {size: 7}},
    scales: {x: {time: false}, y: log ? {distr: 3} : {}},
    axes: [{...axis, gap: 6, size: 30, space: 60}, {...axis, grid: {...axis.grid, filter: log ? decades : (u, ticks) => ticks}, size: 58, gap: 6, values: (u, ticks) => ticks.map(tick => (tick === null ? "" : short(tick)))}],
    series: [{}, ...drawn.map((one, k) => ({
      label: one.label, stroke: () => paper(k), width: drawn.length > 6 ? 1.2 : 1.8, spanGaps: true, points: {show: xs.length < 3, size: 6},
    }))],
    hooks: {setCursor: [u => show(u)]},
  };
  const u = new uPlot(options, [xs, ...drawn.map(one => one.values)], plot);
  function show(u) {
    const {idx, left} = u.cursor, inside = idx !== null && idx !== undefined && left >= 0 && figure.matches(":hover, :focus-within");
    tip.hidden = !inside;
    if (!inside) return;
    tip.replaceChildren(make("b", {}, `outer step ${xs[idx].toLocaleString("en")}`));
    for (const k of told) {
      const mark = make("i");
      mark.style.background = paper(k);
      tip.append(make("div", {}, make("span", {}, mark, drawn[k].label), make("span", {}, drawn[k].say(drawn[k].values[idx]))));
    }
    const at = u.over.getBoundingClientRect().left - figure.getBoundingClientRect().left + left;
    tip.style.left = `${at + 14 + tip.offsetWidth > figure.clientWidth ? Math.max(0, at - 14 - tip.offsetWidth) : at + 14}px`;
    tip.style.top = `${plot.offsetTop + 14}px`;
  }
  plot.addEventListener("keydown", event => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!by) return;
    event.preventDefault();
    const last = u.cursor.idx ?? (by > 0 ? -1 : xs.length), next = Math.min(xs.length - 1, Math.max(0, last + by));
    u.setCursor({left: u.valToPos(xs[next], "x"), top: 20});
  });
  plot.addEventListener("blur", () => { tip.hidden = true; });
  figure.addEventListener("mouseleave", () => { tip.hidden = true; });
  if (drawn.length > 1 && drawn.length <= 6) {
    figure.append(make("ul", {className: "keys"}, ...drawn.map((one, k) => {
      const mark = make("i");
      mark.className = `mark-${k}`;
      mark.style.background = `var(--c${k})`;
      return make("li", {}, mark, one.label);
    })));
  }
  new ResizeObserver(() => u.setSize({width: Math.max(200, plot.clientWidth), height: 220})).observe(plot);
  plots.push(u);
}

function curves(set, article, number) {
  const {curves: all} = set, place = article.querySelector(".charts");
  if (!all || !place) return;
  const key = `set-${number}`, xs = all.step, line = (label, values, say = short) => ({label, values, say});
  const present = values => values && values.some(value => value !== null);
  const shares = all.held_out_accuracy.map(share => (share === null ? null : 100 * share));
  if (present(shares)) chart(place, "Held-out accuracy", "%", xs, [line("held-out", shares, value => (value === null ? "-" : `${value.toFixed(2)} %`))], false, key);
  const losses = [line("held-out", all.held_out_loss), line("outer, mean since the last validation", all.outer_loss)];
  if (losses.some(one => present(one.values))) chart(place, "Loss", "", xs, losses, false, key);
  const rates = all.learning_rates.map((values, t) => line(`gradient step ${t + 1}`, values));
  if (rates.some(one => present(one.values))) chart(place, "Learned learning rates", rates.length > 6 ? `of ${rates.length} steps, log scale` : "log scale", xs, rates, true, key);
  if (present(all.rate)) chart(place, "Rate of the outer optimiser", "", xs, [line("rate", all.rate)], false, key);
  table(article.querySelector(".series"), all, rates);
}

function table(place, all, rates) {
  const columns = [["held-out accuracy", all.held_out_accuracy.map(v => (v === null ? "-" : percent(v)))], ["held-out loss", all.held_out_loss.map(short)],
    ["outer loss", all.outer_loss.map(short)], ["outer rate", all.rate.map(short)], ...rates.slice(0, 6).map(one => [`rate, ${one.label}`, one.values.map(short)])];
  place.closest("details").addEventListener("toggle", () => {
    if (place.rows.length) return;
    place.append(make("thead", {}, make("tr", {}, make("th", {}, "step"), ...columns.map(([name]) => make("th", {}, name)))));
    place.append(make("tbody", {}, ...all.step.map((step, row) =>
      make("tr", {}, make("th", {scope: "row"}, step.toLocaleString("en")), ...columns.map(([, values]) => make("td", {}, values[row]))))));
  });
}

function confusions() {
  for (const cell of document.querySelectorAll("td[data-share]"))
    cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(55 * cell.dataset.share)}%, transparent)`;
}

const galleries = [];
function redraw() {
  plots.forEach(plot => plot.redraw());
  galleries.forEach(gallery => gallery.bars.forEach(([canvas, soft]) => paintBars(canvas, soft)));
}
large.start();
document.querySelectorAll("article.set").forEach((article, number) => {
  galleries.push(new Gallery(sets[number], article));
  curves(sets[number], article, number);
});
confusions();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => { document.documentElement.classList.add("printing"); redraw(); });
addEventListener("afterprint", () => { document.documentElement.classList.remove("printing"); redraw(); });
Promise.all(galleries.map(gallery => gallery.ready)).then(() => { document.documentElement.dataset.ready = "yes"; });
