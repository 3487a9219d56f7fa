"use strict";
// Tabs, sorting and filters. The page says everything without them too.
(() => {
  const all = (root, query) => Array.from(root.querySelectorAll(query));
  let made = 0;

  // Titled panels become tabs (WAI-ARIA: arrows move, only the chosen one is in the tab order); many become a menu.
  const MOST_TABS = 6;
  const menuOf = (box, panels) => {
    const menu = document.createElement("select");
    menu.className = "chooser";
    menu.setAttribute("aria-label", box.dataset.label);
    menu.append(...panels.map((panel, at) => new Option(panel.dataset.title, at)));
    const show = () => panels.forEach((panel, at) => (panel.hidden = at !== Number(menu.value)));
    menu.addEventListener("change", show);
    show();
    return menu;
  };
  const tabsOf = (box, panels) => {
    const list = document.createElement("div");
    list.className = "tablist";
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", box.dataset.label);
    const buttons = panels.map((panel) => {
      const button = document.createElement("button");
      made += 1;
      button.type = "button";
      button.textContent = panel.dataset.title;
      button.id = `tab-${made}`;
      panel.id = `panel-${made}`;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", button.id);
      list.append(button);
      return button;
    });
    const show = (chosen) => {
      panels.forEach((panel, at) => {
        panel.hidden = at !== chosen;
        buttons[at].setAttribute("aria-selected", String(at === chosen));
        buttons[at].tabIndex = at === chosen ? 0 : -1;
      });
    };
    buttons.forEach((button, at) => {
      button.addEventListener("click", () => show(at));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const to = { Home: 0, End: buttons.length - 1 }[event.key] ?? (step === undefined ? undefined : at + step);
        if (to === undefined) return;
        event.preventDefault();
        const next = (to + buttons.length) % buttons.length;
        show(next);
        buttons[next].focus();
      });
    });
    show(0);
    return list;
  };
  for (const box of all(document, ".tabs")) {
    const panels = Array.from(box.children);
    box.prepend(panels.length > MOST_TABS ? menuOf(box, panels) : tabsOf(box, panels));
    box.classList.add("live");
  }

  // Tables sort by a click on a column: numbers the largest first, names from A.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const given = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(given.replaceAll(",", "").replace("\u2212", "-").replace(/ .*$/, ""));
    return given === "" || given === "\u2013" ? null : Number.isNaN(number) ? given : number;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  for (const table of all(document, "table.sortable")) {
    const body = table.tBodies[0];
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      if (head.dataset.sort === undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("number") ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const keyed = Array.from(body.rows, (row) => [keyOf(row, column), row]);
        keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
        body.append(...keyed.map(([, row]) => row));
      });
    });
  }

  // Matches to read are filtered by what each says of itself; a dozen are shown until more are asked for.
  const FIRST = 12;
  for (const form of all(document, ".filters")) {
    const cases = all(form.parentElement, ".case");
    const more = form.parentElement.querySelector(".more");
    let everything = false;
    const update = () => {
      const selects = all(form, "select").filter((select) => select.value);
      const fits = (item) =>
        selects.every((select) => (item.dataset[select.name] || "").split("\n").includes(select.value));
      const found = cases.filter(fits);
      const shown = new Set(everything ? found : found.slice(0, FIRST));
      cases.forEach((item) => (item.hidden = !shown.has(item)));
      form.querySelector("output").textContent = `${shown.size} of ${found.length} shown`;
      more.textContent = `Show all ${found.length}`;
      more.hidden = shown.size === found.length;
    };
    form.addEventListener("change", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => {
      everything = true;
      update();
    });
    form.hidden = false;
    update(); // a browser may have kept what was chosen
  }
})();
