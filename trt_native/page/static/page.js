"use strict";

function startTheme(button) {
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const label = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.title = dark() ? "Use light colours" : "Use dark colours";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  label();
}

function startGraphs(graphs) {
  const part = (id) => document.getElementById(id);
  const parts = {
    svg: part("drawing"), details: part("details"), chains: part("chains"), colour: part("colour"), legend: part("legend"),
  };
  const views = new Map();
  let view = null;
  const choose = (index) => {
    parts.details.hidden = true;
    if (view) view.colour = parts.colour.value;
    if (!views.has(index)) views.set(index, new GraphView(graphs[index], parts));
    view = views.get(index);
    parts.chains.parentElement.hidden = !view.model.nodes.some((node) => node.c);
    for (const tab of tabs) tab.setAttribute("aria-selected", String(tab === tabs[index]));
    view.show();
  };
  const tabs = graphs.map((graph, index) => {
    const tab = document.createElement("button");
    tab.type = "button";
    tab.role = "tab";
    tab.textContent = graph.title;
    tab.addEventListener("click", () => choose(index));
    return tab;
  });
  if (tabs.length > 1) part("tabs").append(...tabs);
  choose(0);

  parts.svg.addEventListener("click", (event) => view.click(event));
  parts.svg.addEventListener("keydown", (event) => view.key(event));
  parts.chains.addEventListener("change", () => view.draw());
  parts.colour.addEventListener("change", () => view.draw());
  part("fit").addEventListener("click", () => view.fit(true));
  part("closer").addEventListener("click", () => view.scale(1.3));
  part("farther").addEventListener("click", () => view.scale(1 / 1.3));
  part("open-all").addEventListener("click", () => view.openAll(true));
  part("close-all").addEventListener("click", () => view.openAll(false));
  startSearch(part("search"), part("results"), () => view);
}

function startSearch(field, list, view) {
  let found = [];
  let chosen = -1;
  const hide = () => {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  };
  const highlight = (index) => {
    chosen = index;
    [...list.children].forEach((item, row) => item.setAttribute("aria-selected", String(row === index)));
    const item = list.children[index];
    if (item) {
      field.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    }
  };
  const go = (index) => {
    const result = found[index];
    if (!result) return;
    hide();
    view().reveal(result.key);
    document.getElementById("drawing").focus({ preventScroll: true });
  };
  const search = () => {
    found = view().find(field.value);
    list.replaceChildren(...found.map(({ title, note }, index) => {
      const item = document.createElement("li");
      item.id = `result-${index}`;
      item.role = "option";
      const name = document.createElement("span");
      name.textContent = title;
      const kind = document.createElement("small");
      kind.textContent = note;
      item.append(name, kind);
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        go(index);
      });
      return item;
    }));
    if (!found.length && field.value.trim()) {
      const none = document.createElement("li");
      none.className = "none";
      none.textContent = "nothing found";
      list.append(none);
    }
    list.hidden = !list.children.length;
    field.setAttribute("aria-expanded", String(!list.hidden));
    highlight(found.length ? 0 : -1);
  };
  field.addEventListener("input", search);
  field.addEventListener("focus", () => field.value && search());
  field.addEventListener("blur", hide);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length) {
      event.preventDefault();
      highlight((chosen + step + found.length) % found.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      go(Math.max(chosen, 0));
    } else if (event.key === "Escape") {
      field.value = "";
      hide();
    }
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      field.focus();
    }
  });
}

startTheme(document.getElementById("theme"));
const data = document.getElementById("data");
if (data) startGraphs(JSON.parse(data.textContent));
document.documentElement.dataset.ready = "yes";
