"use strict";

// Draws a graph, and answers mouse, touch and keyboard.

const SVG = "http://www.w3.org/2000/svg";
const FIRST_VIEW = 40; // boxes that may be visible when the page opens
const MOST_RESULTS = 50;
const MEASURES = { t: ["time", milliseconds], f: ["multiply-adds", amount], w: ["weights", bytes] };

class GraphView {
  constructor(data, parts) {
    this.model = new Model(data);
    this.parts = parts; // svg, details, search, results, chains, colour, legend
    this.open = new Set();
    this.selected = null;
    this.boxes = new Map();
    this.layouts = new Map();
    this.zoom = libraries.zoom().scaleExtent([0.02, 4]).filter((event) => this.mayMove(event))
      .on("zoom", ({ transform }) => this.canvas.setAttribute("transform", transform));
    this.details = new Details(parts.details, this.model, {
      go: (key) => this.reveal(key),
      toggle: (module) => this.toggle(module),
      isOpen: (module) => this.open.has(module),
      close: () => this.select(null),
    });
    this.measures = Object.keys(MEASURES).filter((key) => this.model.nodes.some((node) => node[key]));
    this.openFirst();
  }

  // The wheel, and a finger on its own, move the page unless the graph was clicked before.
  mayMove(event) {
    if (event.button) return false;
    const focused = document.activeElement === this.parts.svg;
    if (event.type === "wheel") return focused || event.ctrlKey;
    return event.type !== "touchstart" || focused || event.touches.length > 1;
  }

  openFirst() {
    const { modules } = this.model;
    let waiting = [...modules[0].modules];
    let visible = modules[0].nodes.length + waiting.length;
    while (waiting.length) {
      const next = waiting.shift();
      const more = modules[next].nodes.length + modules[next].modules.length - 1;
      if (visible + more > FIRST_VIEW) break;
      visible += more;
      this.open.add(next);
      waiting = waiting.concat(modules[next].modules);
    }
  }

  show() {
    const { svg, colour, legend } = this.parts;
    libraries.select(svg).call(this.zoom).on("dblclick.zoom", null);
    colour.replaceChildren(...["p", ...this.measures].map((key) => {
      const option = document.createElement("option");
      option.value = key;
      option.textContent = key === "p" ? "precision" : MEASURES[key][0];
      return option;
    }));
    colour.value = this.colour || "p";
    legend.replaceChildren();
    this.draw();
    this.fit();
  }

  draw() {
    this.placed = new Layout(this.model, this.open, this.parts.chains.checked, this.layouts).place();
    this.boxes.clear();
    this.canvas = this.element("g");
    this.level(this.placed, 0, 0, this.canvas);
    this.parts.svg.replaceChildren(this.canvas);
    this.canvas.setAttribute("transform", libraries.zoomTransform(this.parts.svg));
    this.paintLegend();
    if (this.selected && this.boxes.has(this.selected)) this.mark(this.selected);
  }

  level(placed, left, top, parent) {
    const lines = this.element("g", { class: "edges" });
    const path = libraries.line().x((p) => left + p.x).y((p) => top + p.y).curve(libraries.curveMonotoneY);
    for (const edge of placed.edges) {
      const drawn = this.element("path", { d: path(edge.points), class: "edge" });
      drawn.edge = edge;
      const titles = edge.tensors.slice(0, 5).map((index) => this.model.tensors[index].slice(0, 3).join(" "));
      drawn.append(this.titled(titles.join("\n")));
      lines.append(drawn);
    }
    parent.append(lines);
    for (const item of placed.items) this.item(item, left + item.x, top + item.y, parent);
  }

  item(item, x, y, parent) {
    const key = { node: "n", module: "m", input: "i", output: "o" }[item.kind];
    if (item.kind === "port") {
      const port = this.element("circle", { class: "port", cx: x + 3, cy: y + 3, r: 3 });
      port.append(this.titled(this.model.tensors[item.index].slice(0, 3).join(" ")));
      parent.append(port);
      return;
    }
    const id = `${key}${item.index}`;
    const box = this.element("g", { class: `box ${item.kind}${item.inner ? " open" : ""}`, "data-key": id });
    const subject = item.kind === "module" ? this.model.modules[item.index] : this.model.nodes[item.index];
    if (item.kind === "node" && subject.d) box.classList.add("marked");
    if (item.kind === "module" && subject.marks) box.classList.add("marked");
    const shape = { x, y, width: item.width, height: item.height, rx: item.kind === "node" ? 4 : 9 };
    box.append(this.element("rect", { ...shape, class: `body ${this.tone(item, subject)}` }));
    this.heat(box, item, subject, shape);
    if (item.kind === "module") box.append(this.sign(x + item.width - 15, y + 15, item.inner));
    const inside = item.width - 2 * SIZES.pad - SIZES.sign;
    const lines = item.inner ? [shortened(subject.name, inside, BOLD)] : item.lines;
    lines.forEach((line, row) => {
      const text = this.element("text", { x: x + SIZES.pad, y: y + SIZES.pad + 11 + row * SIZES.line });
      if (!row) text.setAttribute("class", "first");
      text.textContent = line;
      box.append(text);
    });
    if (item.kind === "module" && !item.inner) box.append(...this.stripe(subject.mix, shape));
    box.append(this.titled(item.kind === "node" ? `${subject.k} ${subject.n || ""}` : item.kind === "module" ? this.model.fullName(item.index) : lines.join(" ")));
    parent.append(box);
    this.boxes.set(id, { x, y, width: item.width, height: item.height, box });
    if (item.inner) this.level(item.inner, x + (item.width - item.inner.width) / 2, y + SIZES.head, parent);
  }

  tone(item, subject) {
    if (this.coloured() !== "p" || item.kind !== "node") return "";
    return subject.p ? `p-${subject.p}` : "";
  }

  coloured() {
    return this.parts.colour.value || "p";
  }

  // How much of the whole a box takes, by the strength of its colour.
  heat(box, item, subject, shape) {
    const measure = this.coloured();
    if (measure === "p" || item.inner || (item.kind !== "node" && item.kind !== "module")) return;
    const name = { t: "time", f: "macs", w: "weights" }[measure];
    const value = item.kind === "node" ? subject[measure] || 0 : subject[name];
    const share = value / (this.model.modules[0][name] || 1);
    box.append(this.element("rect", { ...shape, class: "heat", "fill-opacity": Math.min(0.85, Math.sqrt(share)).toFixed(3) }));
  }

  stripe(mix, { x, y, width, height }) {
    const total = Object.values(mix).reduce((sum, count) => sum + count, 0);
    let place = x + SIZES.pad;
    return Object.entries(mix).map(([name, count]) => {
      const part = ((width - 2 * SIZES.pad) * count) / total;
      const bar = this.element("rect", { x: place, y: y + height - 5, width: part, height: 3, class: `p-${name}` });
      place += part;
      return bar;
    });
  }

  sign(x, y, open) {
    const group = this.element("g", { class: "sign" });
    group.append(this.element("circle", { cx: x, cy: y, r: 15, class: "hit" })); // for fingers
    group.append(this.element("circle", { cx: x, cy: y, r: 8 }));
    group.append(this.element("path", { d: `M${x - 4} ${y}h8${open ? "" : `M${x} ${y - 4}v8`}` }));
    return group;
  }

  paintLegend() {
    const found = Object.keys(this.model.modules[0].mix);
    const names = this.coloured() === "p" ? found : [];
    this.parts.legend.replaceChildren(...names.map((name) => {
      const entry = document.createElement("span");
      const square = this.element("svg", { class: "square" });
      square.append(this.element("rect", { width: "100%", height: "100%", rx: 2, class: `p-${name}` }));
      entry.append(square, ` ${name}`);
      return entry;
    }));
    if (this.coloured() !== "p") this.parts.legend.textContent = `The stronger the colour, the larger the share of all ${MEASURES[this.coloured()][0]}.`;
  }

  toggle(module) {
    if (!module) return;
    const before = this.boxes.get(`m${module}`);
    if (!this.open.delete(module)) this.open.add(module);
    this.draw();
    this.hold(`m${module}`, before);
    this.select(`m${module}`);
  }

  // Keeps the corner of a box where it was on the screen.
  hold(key, before) {
    const after = this.boxes.get(key);
    if (before && after) this.move((t) => t.translate(before.x - after.x, before.y - after.y));
  }

  openAll(open) {
    this.open = new Set(open ? this.model.modules.map((module) => module.index).slice(1) : []);
    this.draw();
    this.fit();
  }

  select(key) {
    this.selected = key;
    this.mark(key);
    if (key) this.details.show(key);
    else this.details.hide();
  }

  mark(key) {
    const { svg } = this.parts;
    svg.querySelectorAll(".selected, .touched").forEach((element) => element.classList.remove("selected", "touched"));
    if (!key || !this.boxes.has(key)) return;
    this.boxes.get(key).box.classList.add("selected");
    for (const line of svg.querySelectorAll(".edge")) {
      line.classList.toggle("touched", line.edge.from === key || line.edge.to === key);
    }
  }

  // Opens what is around a node, selects it, and brings it to the middle.
  reveal(key) {
    const index = Number(key.slice(1));
    if (key[0] === "n") {
      this.model.path(this.model.nodes[index].m).slice(1).forEach((module) => this.open.add(module));
      if (this.model.nodes[index].c) this.parts.chains.checked = true;
    } else if (key[0] === "m") {
      this.model.path(index).slice(1, -1).forEach((module) => this.open.add(module));
      if (!this.model.modules[index].own) this.parts.chains.checked = true;
    }
    this.draw();
    this.select(key);
    this.center(key);
  }

  center(key) {
    const found = this.boxes.get(key);
    if (!found) return;
    const { width, height } = this.view();
    const scale = Math.max(libraries.zoomTransform(this.parts.svg).k, 0.8);
    const x = width / 2 - (found.x + found.width / 2) * scale;
    const y = height / 2 - (found.y + Math.min(found.height, height / scale) / 2) * scale;
    this.move(() => libraries.zoomIdentity.translate(x, y).scale(scale));
  }

  // All of it, or as much as can be read: from its top, around the first box.
  fit(whole = false) {
    const { width, height } = this.view();
    const wide = (width - 20) / this.placed.width;
    const all = Math.min(1, wide, (height - 20) / this.placed.height);
    const scale = whole ? all : Math.max(all, Math.min(1, Math.max(wide, 0.75)));
    const top = [...this.boxes.values()].reduce((one, other) => (other.y < one.y ? other : one));
    const middle = this.placed.width * scale <= width ? this.placed.width / 2 : top.x + top.width / 2;
    const y = Math.max(10, (height - this.placed.height * scale) / 2);
    this.move(() => libraries.zoomIdentity.translate(width / 2 - middle * scale, y).scale(scale));
  }

  view() {
    const { width, height } = this.parts.svg.getBoundingClientRect();
    return { width: width || 800, height: height || 600 };
  }

  move(change) {
    const svg = libraries.select(this.parts.svg);
    svg.call(this.zoom.transform, change(libraries.zoomTransform(this.parts.svg)));
  }

  scale(factor) {
    libraries.select(this.parts.svg).call(this.zoom.scaleBy, factor);
  }

  click(event) {
    const box = event.target.closest(".box");
    this.parts.svg.focus({ preventScroll: true });
    if (!box) {
      this.select(null);
      return;
    }
    const { key } = box.dataset;
    const pressed = event.target.closest(".sign") || event.detail === 2;
    if (key[0] === "m" && pressed) this.toggle(Number(key.slice(1)));
    else this.select(key);
  }

  key(event) {
    const actions = {
      "+": () => this.scale(1.3), "=": () => this.scale(1.3), "-": () => this.scale(1 / 1.3), 0: () => this.fit(true),
      Enter: () => this.selected?.[0] === "m" && this.toggle(Number(this.selected.slice(1))),
      Escape: () => this.select(null),
      ArrowDown: () => this.step(0, 1), ArrowUp: () => this.step(0, -1),
      ArrowRight: () => this.step(1, 0), ArrowLeft: () => this.step(-1, 0),
    };
    const action = actions[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  }

  // To the nearest box in a direction.
  step(right, down) {
    const current = this.boxes.get(this.selected);
    const middle = ({ x, y, width, box, height }) => [x + width / 2, y + (box.classList.contains("open") ? 0 : height / 2)];
    let best = null;
    let least = Infinity;
    const [fromX, fromY] = current ? middle(current) : [this.placed.width / 2, -Infinity];
    for (const [key, found] of this.boxes) {
      if (key === this.selected) continue;
      const [x, y] = middle(found);
      if (!current) {
        if (y < least) [best, least] = [key, y];
        continue;
      }
      const along = (x - fromX) * right + (y - fromY) * down;
      const across = Math.abs((x - fromX) * down) + Math.abs((y - fromY) * right);
      if (along > 1 && along + 3 * across < least) [best, least] = [key, along + 3 * across];
    }
    if (!best) return;
    this.select(best);
    this.keepInView(best);
  }

  keepInView(key) {
    const found = this.boxes.get(key);
    const transform = libraries.zoomTransform(this.parts.svg);
    const { width, height } = this.view();
    const [x, y] = transform.apply([found.x, found.y]);
    if (x < 0 || y < 0 || x + found.width * transform.k > width || y + 40 > height) this.center(key);
  }

  find(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return [];
    const results = [];
    const add = (key, title, note, ...names) => {
      const place = Math.min(...names.map((name) => rank((name || "").toLowerCase(), wanted)));
      if (place < Infinity) results.push({ key, title, note, place });
    };
    const { modules, nodes, tensors } = this.model;
    modules.slice(1).forEach((module) => add(`m${module.index}`, this.model.fullName(module.index), "module", module.name, this.model.fullName(module.index)));
    nodes.forEach((node, index) => add(`n${index}`, node.n || node.k, node.k, node.n, node.k));
    tensors.forEach(([name], index) => {
      const producer = this.model.producers.get(index);
      const [consumer] = this.model.consumers.get(index) || [];
      const node = producer ?? consumer;
      if (this.model.inputs.has(index)) add(`i${index}`, name, "input", name);
      else if (this.model.outputs.has(index)) add(`o${index}`, name, "output", name);
      else if (node !== undefined) add(`n${node}`, name, "tensor", name);
    });
    return results.sort((one, other) => one.place - other.place).slice(0, MOST_RESULTS);
  }

  element(tag, attributes = {}) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  titled(text) {
    const title = this.element("title");
    title.textContent = text;
    return title;
  }
}

function rank(name, wanted) { // whole names first, then those that begin with it, then those with it
  if (name === wanted) return 0;
  const place = name.indexOf(wanted);
  if (place < 0) return Infinity;
  return place === 0 ? 1 : /[./_]/.test(name[place - 1]) ? 2 : 3;
}
