"use strict";

// Places of what is visible of a graph. A module that is open is laid out on its own, and is one box
// for the module around it, so that a change inside one leaves the others as they are.

const SIZES = { line: 15, pad: 8, head: 30, gap: 14, least: 90, most: 230, port: 6, sign: 22 };
const FONT = '11px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const BOLD = FONT.replace("11px", "600 12px");
const pen = document.createElement("canvas").getContext("2d");

function textWidth(text, font) {
  pen.font = font;
  return pen.measureText(text).width;
}

class Model {
  constructor(data) {
    this.data = data;
    this.nodes = data.nodes;
    this.tensors = data.tensors;
    this.modules = data.modules.map(([name, parent], index) => ({
      index, name, parent, modules: [], nodes: [], size: 0, own: 0, weights: 0, macs: 0, time: 0, marks: 0, mix: {},
    }));
    for (const module of this.modules) {
      module.depth = module.parent < 0 ? 0 : this.modules[module.parent].depth + 1;
      if (module.parent >= 0) this.modules[module.parent].modules.push(module.index);
    }
    this.producers = new Map();
    this.consumers = new Map();
    this.nodes.forEach((node, index) => {
      this.modules[node.m].nodes.push(index);
      for (const tensor of node.o || []) this.producers.set(tensor, index);
      for (const tensor of node.i || []) {
        if (!this.consumers.has(tensor)) this.consumers.set(tensor, []);
        this.consumers.get(tensor).push(index);
      }
    });
    this.nodes.forEach((node) => this.count(node));
    this.inputs = new Set(data.inputs);
    this.outputs = new Set(data.outputs);
  }

  count(node) {
    for (let index = node.m; index >= 0; index = this.modules[index].parent) {
      const module = this.modules[index];
      module.size += 1;
      module.own += node.c ? 0 : 1;
      module.weights += node.w || 0;
      module.macs += node.f || 0;
      module.time += node.t || 0;
      module.marks += node.d ? 1 : 0;
      if (node.p && !node.c) module.mix[node.p] = (module.mix[node.p] || 0) + 1;
    }
  }

  path(index) { // of modules, outermost first
    const path = [];
    for (; index >= 0; index = this.modules[index].parent) path.unshift(index);
    return path;
  }

  fullName(index) {
    return this.path(index).slice(1).map((module) => this.modules[module].name).join(".");
  }
}

class Layout {
  // `open` holds the indices of open modules; `chains` whether nodes that only compute shapes and
  // constants are shown. `cache` keeps what was laid out before.
  constructor(model, open, chains, cache) {
    this.model = model;
    this.open = open;
    this.chains = chains;
    this.cache = cache;
    this.levels = new Map();
    this.collect();
  }

  shows(node) {
    return this.chains || !this.model.nodes[node].c;
  }

  level(module) {
    if (!this.levels.has(module)) this.levels.set(module, { items: new Map(), edges: new Map() });
    return this.levels.get(module);
  }

  isOpen(module) {
    return module === 0 || this.open.has(module);
  }

  // The modules around a node, outermost first, down to the first closed one.
  visiblePath(module) {
    const path = [];
    for (const index of this.model.path(module)) {
      path.push(index);
      if (!this.isOpen(index)) break;
    }
    return path;
  }

  collect() {
    const { model } = this;
    model.nodes.forEach((node, index) => {
      if (!this.shows(index)) return;
      const path = this.visiblePath(node.m);
      for (let depth = 1; depth < path.length; depth++) {
        this.level(path[depth - 1]).items.set(`m${path[depth]}`, { kind: "module", index: path[depth] });
      }
      const inner = path[path.length - 1];
      if (this.isOpen(inner)) this.level(inner).items.set(`n${index}`, { kind: "node", index });
    });
    for (const [side, tensors] of [["input", model.inputs], ["output", model.outputs]]) {
      for (const index of tensors) this.level(0).items.set(`${side[0]}${index}`, { kind: side, index });
    }
    const shown = (node) => ({ path: this.visiblePath(model.nodes[node].m), key: `n${node}` });
    model.tensors.forEach((tensor, index) => {
      const producer = model.producers.get(index);
      const ends = (model.consumers.get(index) || []).filter((node) => this.shows(node)).map(shown);
      if (model.outputs.has(index)) ends.push({ path: [0], key: `o${index}` });
      if (producer !== undefined && this.shows(producer)) {
        for (const end of ends) this.connect(index, shown(producer), end);
      } else if (model.inputs.has(index)) {
        for (const end of ends) this.connect(index, { path: [0], key: `i${index}` }, end);
      }
    });
  }

  // An edge between the two where their paths part, and to ports of the open modules below.
  connect(tensor, from, to) {
    const at = (end, depth) => (depth < end.path.length ? `m${end.path[depth]}` : end.key);
    let depth = 1;
    while (depth < from.path.length && depth < to.path.length && from.path[depth] === to.path[depth]) depth++;
    const meeting = from.path[depth - 1];
    if (!this.isOpen(meeting)) return;
    this.edge(meeting, at(from, depth), at(to, depth), tensor);
    for (const [end, side] of [[from, "s"], [to, "e"]]) {
      for (let inner = depth; inner < end.path.length && this.isOpen(end.path[inner]); inner++) {
        const module = end.path[inner];
        const key = `${side}${tensor}`;
        this.level(module).items.set(key, { kind: "port", index: tensor, leaves: side === "s" });
        if (side === "s") this.edge(module, at(end, inner + 1), key, tensor);
        else this.edge(module, key, at(end, inner + 1), tensor);
      }
    }
  }

  edge(module, from, to, tensor) {
    if (from === to) return;
    const { edges } = this.level(module);
    const key = `${from}>${to}`;
    if (!edges.has(key)) edges.set(key, { from, to, tensors: [] });
    const { tensors } = edges.get(key);
    if (!tensors.includes(tensor)) tensors.push(tensor);
  }

  // Boxes and lines of a module, and of those open in it, with places relative to it. They depend on
  // nothing outside it.
  place(module = 0) {
    const key = `${this.chains} ${module}${this.opened(module)}`;
    if (!this.cache.has(key)) this.cache.set(key, this.placeNow(module));
    return this.cache.get(key);
  }

  opened(module) {
    const inside = this.model.modules[module].modules.filter((inner) => this.isOpen(inner));
    return inside.length ? `(${inside.map((inner) => inner + this.opened(inner)).join()})` : "";
  }

  placeNow(module) {
    const level = this.level(module);
    const graph = new libraries.graphlib.Graph();
    graph.setGraph({ rankdir: "TB", nodesep: SIZES.gap, ranksep: 26, edgesep: 8, ranker: "longest-path" });
    for (const [key, item] of level.items) {
      if (item.kind === "module" && this.isOpen(item.index)) {
        item.inner = this.place(item.index);
        item.width = Math.max(item.inner.width + 2 * SIZES.pad, SIZES.least + 60);
        item.height = item.inner.height + SIZES.head + SIZES.pad;
      } else {
        Object.assign(item, this.size(item));
      }
      graph.setNode(key, { width: item.width, height: item.height });
    }
    for (const { from, to } of level.edges.values()) graph.setEdge(from, to, { weight: this.weight(from, to) });
    libraries.layout(graph);
    for (const [key, item] of level.items) {
      const { x, y } = graph.node(key);
      item.x = x - item.width / 2;
      item.y = y - item.height / 2;
    }
    const edges = [...level.edges.values()].map((edge) => ({
      ...edge, points: graph.edge(edge.from, edge.to).points,
    }));
    const { width, height } = graph.graph();
    return { module, items: [...level.items.values()], edges, width: Math.max(width || 0, 1), height: Math.max(height || 0, 1) };
  }

  weight(from, to) {
    return from[0] === "e" || to[0] === "s" ? 1 : 2;
  }

  size(item) {
    if (item.kind === "port") return { width: SIZES.port, height: SIZES.port };
    item.lines = this.lines(item);
    const longest = Math.max(...item.lines.map((line, row) => textWidth(line, row ? FONT : BOLD)));
    const around = 2 * SIZES.pad + (item.kind === "module" ? SIZES.sign : 0);
    const width = Math.min(SIZES.most, Math.max(SIZES.least, Math.ceil(longest) + around));
    item.lines = item.lines.map((line, row) => shortened(line, width - around, row ? FONT : BOLD));
    return { width, height: item.lines.length * SIZES.line + 2 * SIZES.pad };
  }

  lines(item) {
    const { model } = this;
    if (item.kind === "module") {
      const module = model.modules[item.index];
      const count = this.chains ? module.size : module.own;
      const amounts = [`${count} node${count === 1 ? "" : "s"}`];
      if (module.time) amounts.push(milliseconds(module.time));
      else if (module.weights) amounts.push(bytes(module.weights));
      return [module.name, amounts.join(", ")];
    }
    if (item.kind !== "node") {
      const [name, type, shape] = model.tensors[item.index];
      return [name, `${type} ${shape}`.trim()].filter(Boolean);
    }
    const node = model.nodes[item.index];
    const first = model.tensors[(node.o || [])[0]];
    const time = node.t ? ` ${milliseconds(node.t)}` : "";
    const name = (node.n || "").slice((node.n || "").lastIndexOf("/") + 1);
    const named = name && name !== node.k ? [name] : [];
    return [node.k + time, ...named, ...(first && (first[1] || first[2]) ? [`${first[1]} ${first[2]}`.trim()] : [])];
  }
}

// The text without its middle, where it is wider than the room for it.
function shortened(text, room, font) {
  if (textWidth(text, font) <= room) return text;
  let letters = Math.max(3, Math.floor((text.length * room) / textWidth(text, font)) - 1);
  for (; letters > 3; letters--) {
    const kept = Math.ceil((letters - 1) / 2);
    const short = `${text.slice(0, kept)}\u2026${text.slice(text.length - (letters - 1 - kept))}`;
    if (textWidth(short, font) <= room) return short;
  }
  return `${text.slice(0, 2)}\u2026`;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < 4) {
    count /= 1024;
    unit += 1;
  }
  return `${unit ? count.toFixed(1) : count} ${units[unit]}`;
}

function amount(count) {
  const units = ["", "k", "M", "G", "T", "P"];
  let unit = 0;
  while (count >= 1000 && unit < 5) {
    count /= 1000;
    unit += 1;
  }
  return `${unit ? count.toPrecision(3) : count}${units[unit]}`;
}

function milliseconds(time) {
  return time < 0.1 ? `${(time * 1000).toFixed(1)} µs` : `${time.toFixed(3)} ms`;
}
