// What the pages need beyond the theme: search without a server, tables that a keyboard can scroll, names for buttons, a filter for tables of runs, one switch for all code.
// Code is out of sight until it is asked for, on this page and on those after it; without this script, or in a browser that does not say
// that it runs scripts, each cell keeps its own fold (mvl.css).
const code = {
  get shown() { try { return localStorage.getItem("mvl-code") === "shown"; } catch { return false; } },
  set shown(value) { try { localStorage.setItem("mvl-code", value ? "shown" : "hidden"); } catch { /* private windows keep nothing */ } },
};
document.documentElement.toggleAttribute("data-code", code.shown);

document.addEventListener("DOMContentLoaded", () => {
  const folds = document.querySelectorAll(".cell details.hide.above-input");
  const title = document.querySelector(".bd-article h1");
  if (folds.length && title) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "mvl-code", textContent: "Show the code" });
    const apply = (shown) => {
      document.documentElement.toggleAttribute("data-code", shown);
      button.setAttribute("aria-pressed", shown);
      folds.forEach((fold) => { fold.open = shown; });
    };
    button.addEventListener("click", () => { code.shown = !document.documentElement.hasAttribute("data-code"); apply(code.shown); });
    apply(code.shown);
    const colab = title.parentElement.querySelector('p > a[href*="colab"]');
    if (colab) { colab.parentElement.append(" ", button); } else { title.after(button); }
  }

  // Names that differ from what the button says confuse speech control; the visible words name it.
  document.querySelectorAll("summary[aria-label], .search-button-field[aria-label]").forEach((e) => e.removeAttribute("aria-label"));

  // The entries of the references are no list items, so their box is no list.
  document.querySelectorAll(".citation-list[role=list]").forEach((e) => e.removeAttribute("role"));

  // A box that scrolls can be reached by the keyboard, and only then.
  const boxes = document.querySelectorAll(".pst-scrollable-table-container, .bd-content table, .bd-content pre");
  const reach = () => boxes.forEach((box) => {
    const scrolls = box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "visible";
    if (scrolls) { box.tabIndex = 0; } else { box.removeAttribute("tabindex"); }
  });
  // A figure that is wider than the screen says so, since a phone shows no scroll bar.
  const figures = document.querySelectorAll(".mvl-numbered");
  const hint = () => figures.forEach((figure) => {
    const box = figure.querySelector(".mvl-figure");
    figure.classList.toggle("wide", box !== null && box.scrollWidth > box.clientWidth + 4);
  });
  reach();
  hint();
  addEventListener("resize", hint);
  addEventListener("load", hint);
  addEventListener("resize", reach);
  addEventListener("load", reach);

  // Where a table is wider than a phone, each row becomes a card: its first cell, then a line for each column with the column's name.
  const tables = document.querySelectorAll(".bd-content table:has(thead)");
  const label = (table) => {
    const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
    // roles of their own, since a table that is laid out as blocks loses them in some browsers
    table.setAttribute("role", "table");
    table.querySelectorAll("thead th").forEach((head) => head.setAttribute("role", "columnheader"));
    table.querySelectorAll("tr").forEach((row) => row.setAttribute("role", "row"));
    table.querySelectorAll("tbody tr").forEach((row) => [...row.cells].forEach((cell, at) => {
      if (cell.dataset.label !== undefined) return;
      const inside = document.createElement("span");
      inside.append(...cell.childNodes);
      cell.append(inside);
      cell.dataset.label = heads[at] || "";
      cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell");
      cell.classList.toggle("blank", !inside.textContent.trim());
    }));
  };
  const stack = () => tables.forEach((table) => {
    table.classList.remove("cards");
    const box = table.closest(".pst-scrollable-table-container") || table;
    // a cell of many short lines is as hard to read as one that is out of sight
    const tall = [...table.querySelectorAll("tbody td")].some((cell) => cell.offsetHeight > 240);
    // so is one word broken over three lines
    const broken = [...table.querySelectorAll("td code")].some((code) => code.getClientRects().length > 2 && !code.textContent.includes(" "));
    if (innerWidth > 700 || (box.scrollWidth <= box.clientWidth + 2 && !tall && !broken)) return;
    label(table);
    table.classList.add("cards");
  });
  stack();
  addEventListener("resize", stack);
  addEventListener("load", stack);
  // what is folded has no width until it is opened
  document.addEventListener("toggle", (event) => { if (event.target.open && event.target.querySelector("table")) { stack(); } }, true);

  // A link opens what it leads to: the folds around its target, and the details of a claim.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const claim = (target.closest("section") || target).querySelector(":scope > details.claim");
    if (claim) { claim.open = true; }
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details")) { at.open = true; }
    target.scrollIntoView();
  };
  open();
  addEventListener("hashchange", open);
  // charts and cards move the page once more when they are there
  addEventListener("load", () => setTimeout(open, 400));

  // Runs are filtered by the name of their arm, by fold and by seed; arms with a run that fits are opened.
  document.querySelectorAll("div.runs").forEach((box) => {
    const form = Object.assign(document.createElement("div"), { className: "runs-filter" });
    const field = Object.assign(document.createElement("input"), { type: "search", className: "form-control", placeholder: "Name of the arm: random ..." });
    field.setAttribute("aria-label", "Filter the runs by the name of their arm");
    const rows = [...box.querySelectorAll("tr[id]")];
    const choices = ["fold", "seed"].map((name) => {
      const choice = Object.assign(document.createElement("select"), { className: "form-select", name });
      choice.setAttribute("aria-label", `Filter the runs by ${name}`);
      choice.add(new Option(`every ${name}`, ""));
      [...new Set(rows.map((row) => row.dataset[name]))].sort((a, b) => a - b).forEach((value) => choice.add(new Option(`${name} ${value}`, value)));
      return choice;
    });
    const apply = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      const asked = words.length > 0 || choices.some((choice) => choice.value);
      rows.forEach((row) => { row.hidden = choices.some((choice) => choice.value && row.dataset[choice.name] !== choice.value); });
      box.querySelectorAll("details.arm").forEach((arm) => {
        const name = arm.querySelector("summary").textContent.toLowerCase();
        arm.hidden = !words.every((word) => name.includes(word)) || !arm.querySelector("tr[id]:not([hidden])");
        arm.open = asked && !arm.hidden;
      });
      box.querySelectorAll("p.block").forEach((line) => { line.hidden = asked; });
    };
    [field, ...choices].forEach((part) => part.addEventListener("input", apply));
    form.append(field, ...choices);
    box.before(form);
  });
});

// From file:// a page cannot be fetched for the excerpt under a search result; the results themselves come from the index.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") { DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; }
