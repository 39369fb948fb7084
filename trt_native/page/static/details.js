"use strict";

// The panel with the attributes of what is selected. Names of a model are only ever text of elements.

class Details {
  constructor(panel, model, actions) {
    this.panel = panel;
    this.model = model;
    this.actions = actions; // go(key), toggle(module), close()
  }

  hide() {
    this.panel.hidden = true;
  }

  show(key) {
    const index = Number(key.slice(1));
    const rows = { n: () => this.node(index), m: () => this.module(index) }[key[0]] || (() => this.tensor(index));
    this.panel.replaceChildren(this.button("×", "Close", () => this.actions.close(), "close"), ...rows());
    this.panel.hidden = false;
    this.panel.scrollTop = 0;
  }

  node(index) {
    const { model } = this;
    const node = model.nodes[index];
    const place = model.fullName(node.m);
    return [
      this.heading(node.k, node.n),
      this.list([
        ["differs", node.d],
        ["module", place && this.link(place, `m${node.m}`)],
        ["precision", node.p],
        ["time", node.t && milliseconds(node.t)],
        ["multiply-adds", node.f && amount(node.f)],
        ["weights", node.w && bytes(node.w)],
        ["computes", node.c && "shapes or constants"],
      ]),
      ...this.tensors("Inputs", node.i, (tensor) => [model.producers.get(tensor)]),
      ...this.tensors("Outputs", node.o, (tensor) => model.consumers.get(tensor) || []),
      ...this.attributes(node.a),
    ];
  }

  module(index) {
    const { model } = this;
    const module = model.modules[index];
    const open = this.actions.isOpen(index);
    const mix = Object.entries(module.mix).map(([name, count]) => `${count} ${name}`).join(", ");
    return [
      this.heading(module.name || model.data.title, model.fullName(index)),
      ...(index ? [this.button(open ? "Close" : "Open", "", () => this.actions.toggle(index))] : []),
      this.list([
        ["nodes", `${module.size}` + (module.size > module.own ? `, ${module.size - module.own} of them compute shapes and constants` : "")],
        ["precision", mix],
        ["time", module.time && milliseconds(module.time)],
        ["multiply-adds", module.macs && amount(module.macs)],
        ["weights", module.weights && bytes(module.weights)],
        ["marked", module.marks],
      ]),
    ];
  }

  tensor(index) {
    const { model } = this;
    const [name, type, shape] = model.tensors[index];
    const producer = model.producers.get(index);
    const places = [...(producer === undefined ? [] : [producer]), ...(model.consumers.get(index) || [])];
    return [
      this.heading(model.inputs.has(index) ? "Input" : model.outputs.has(index) ? "Output" : "Tensor", name),
      this.list([["type", type], ["shape", shape]]),
      this.section("Nodes", places.map((node) => this.item(this.nodeLink(node)))),
    ];
  }

  tensors(title, indices, ends) {
    if (!indices || !indices.length) return [];
    const items = indices.map((index) => {
      const [name, type, shape, constant] = this.model.tensors[index];
      const nodes = ends(index).filter((node) => node !== undefined);
      return this.item(
        this.element("code", name || "(no name)"),
        this.element("span", ` ${type} ${shape}${constant ? ", weight" : ""} `),
        ...nodes.slice(0, 8).map((node) => this.nodeLink(node)),
      );
    });
    return [this.section(title, items)];
  }

  attributes(pairs) {
    if (!pairs) return [];
    const items = pairs.map(([name, value]) => this.item(this.element("code", name), this.element("span", ` ${value}`)));
    return [this.section("Attributes", items)];
  }

  nodeLink(index) {
    const node = this.model.nodes[index];
    return this.link(node.n || node.k, `n${index}`);
  }

  link(text, key) {
    return this.button(text, "Show it in the graph", () => this.actions.go(key), "link");
  }

  heading(title, name) {
    const box = this.element("div", "", "title");
    box.append(this.element("h3", title), ...(name ? [this.element("p", name)] : []));
    return box;
  }

  list(rows) {
    const list = this.element("dl", "");
    for (const [name, value] of rows) {
      if (!value) continue;
      const cell = this.element("dd", "");
      cell.append(value);
      list.append(this.element("dt", name), cell);
    }
    return list;
  }

  section(title, items) {
    const section = this.element("section", "");
    const list = this.element("ul", "");
    list.append(...items);
    section.append(this.element("h4", title), list);
    return section;
  }

  item(...children) {
    const item = this.element("li", "");
    item.append(...children);
    return item;
  }

  button(text, title, action, style = "") {
    const button = this.element("button", text, style);
    button.type = "button";
    if (title) {
      button.title = title;
      if (text.length === 1) button.setAttribute("aria-label", title);
    }
    button.addEventListener("click", action);
    return button;
  }

  element(tag, text, style = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (style) element.className = style;
    return element;
  }
}
