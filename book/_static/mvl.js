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

  // A table of runs shows the rows that hold every word typed; a link to a row shows all.
  document.querySelectorAll("div.runs").forEach((box) => {
    const field = document.createElement("input");
    Object.assign(field, { type: "search", className: "form-control runs-filter", placeholder: "Filter runs: random fold seed ..." });
    field.setAttribute("aria-label", "Filter the runs");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      box.querySelectorAll("tr[id]").forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
      box.querySelectorAll("tr.block").forEach((row) => { row.hidden = words.length > 0; });
    });
    box.before(field);
  });
});

// From file:// a page cannot be fetched for the excerpt under a search result; the results themselves come from the index.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") { DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false; }
