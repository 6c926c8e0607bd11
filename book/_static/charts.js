// Interactive charts: the data in the page, drawn by Vega-Lite from the book's own folder. Without this script a chart's block stays hidden.
document.addEventListener("DOMContentLoaded", () => {
  const boxes = [...document.querySelectorAll(".mvl-chart")];
  if (!boxes.length) return;
  const home = (document.documentElement.dataset.content_root || "./") + "vega/";
  const load = (name) => new Promise((done, fail) => {
    const script = document.createElement("script");
    Object.assign(script, { src: home + name, onload: done, onerror: fail });
    document.head.appendChild(script);
  });
  load("vega.min.js").then(() => load("vega-lite.min.js")).then(() => boxes.forEach(draw), () => {});

  function element(name, parent, words, properties) {
    const made = Object.assign(document.createElement(name), properties || {});
    if (words) made.textContent = words;
    parent.appendChild(made);
    return made;
  }

  // The mark of a switch, as the chart draws it: an outline, or a piece of the line.
  function mark(choice) {
    const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
    const path = document.createElementNS(space, "path"), line = !choice.shape;
    const set = (node, values) => Object.entries(values).forEach(([key, value]) => node.setAttribute(key, value));
    set(svg, { viewBox: line ? "0 0 30 4" : "-1.3 -1.3 2.6 2.6", width: line ? 30 : 14, height: line ? 4 : 14, "aria-hidden": "true" });
    set(path, { d: choice.shape || "M0,2H30", stroke: choice.colour, fill: line || choice.hollow ? "none" : choice.colour, "stroke-width": line ? 2.5 : 0.3 });
    if (line) path.setAttribute("stroke-dasharray", choice.dash.join(" "));
    svg.appendChild(path);
    return svg;
  }

  function draw(box, number) {
    const facts = JSON.parse(box.querySelector("script").textContent);
    facts.rows.forEach((row) => { if ("says" in row) row.says = facts.texts[row.says]; });
    box.hidden = false;
    facts.switches.forEach((group, place) => {
      const field = element("fieldset", box);
      element("legend", field, group.title);
      group.inputs = group.choices.map((choice) => {
        const label = element("label", field), kind = group.one ? "radio" : "checkbox";
        const input = element("input", label, "", { type: kind, name: `chart-${number}-${place}`, value: choice.value, checked: choice.on });
        if (choice.colour) label.appendChild(mark(choice));
        element("span", label, choice.words);
        input.addEventListener("change", () => show());
        return input;
      });
    });
    const hint = element("p", box, "", { className: "mvl-hint", id: `chart-${number}-hint` });
    const leads = facts.rows.some((row) => row.href);
    hint.textContent = (facts.key ? facts.key + " " : "") + "Point at a mark for its numbers" + (leads ? ", click it for what is behind it" : "")
      + "; with the keyboard: arrow keys" + (leads ? " and Enter." : ".");
    const plot = element("div", box, "", { className: "mvl-plot", tabIndex: 0 });
    plot.setAttribute("role", "application");
    plot.setAttribute("aria-label", facts.words);
    plot.setAttribute("aria-describedby", hint.id);
    const drawing = element("div", plot, "", { className: "mvl-drawing" });
    // the words of a mark are read from the status line; the drawing itself would only repeat its shapes
    drawing.setAttribute("aria-hidden", "true");
    const ring = element("div", plot, "", { className: "mvl-ring", hidden: true });
    const tip = element("div", plot, "", { className: "mvl-tip", hidden: true });
    const said = element("p", box, "", { className: "mvl-said" }), count = element("p", box, "", { className: "mvl-count" });
    said.setAttribute("role", "status");
    count.setAttribute("role", "status");
    if (box.dataset.still) foldStill(box);

    let at = -1;
    const view = new vega.View(vega.parse(vegaLite.compile(facts.specification).spec), {
      renderer: "svg", container: drawing, hover: true, logLevel: vega.Warn,
      tooltip: (_, event, item) => {
        const row = rowOf(item);
        if (row) point(row, event.clientX, event.clientY); else if (!tip.classList.contains("stays")) hide();
      },
    });
    view.addEventListener("click", (event, item) => {
      const row = rowOf(item);
      if (!row) { hide(); return; }
      // a finger has no hover: the first touch shows the words, and a link in them leads on
      if (event.pointerType === "touch") { point(row, event.clientX, event.clientY, true); return; }
      go(row, event.ctrlKey || event.metaKey);
    });
    show();

    function rowOf(item) {
      const found = item && (item.items ? item.items[0] : item), row = found && found.datum;
      return row && row.says ? row : null;
    }
    function go(row, aside) { if (row.href) window.open(row.href, aside ? "_blank" : "_self"); }
    function hide() {
      tip.hidden = ring.hidden = true;
      tip.classList.remove("stays");
    }
    function point(row, x, y, stays) {
      tip.textContent = "";
      row.says.split("\n").forEach((line) => element("p", tip, line));
      if (stays && row.href) element("a", element("p", tip), row.leads || "Open", { href: row.href });
      tip.classList.toggle("stays", Boolean(stays));
      tip.hidden = false;
      const frame = plot.getBoundingClientRect();
      const left = Math.max(0, Math.min(x - frame.left - tip.offsetWidth / 2, frame.width - tip.offsetWidth));
      const below = y + 16 + tip.offsetHeight < innerHeight;
      tip.style.left = `${left}px`;
      tip.style.top = `${y - frame.top + (below ? 14 : -14 - tip.offsetHeight)}px`;
    }

    function marks() { return [...drawing.querySelectorAll("g.marks_marks > path")].filter((path) => path.getAttribute("d") && rowOf(path.__data__)); }
    function focus(next) {
      const all = marks();
      if (!all.length) return;
      at = Math.max(0, Math.min(next, all.length - 1));
      const row = rowOf(all[at].__data__), frame = plot.getBoundingClientRect();
      all[at].scrollIntoView({ block: "nearest" });
      const place = all[at].getBoundingClientRect(), now = plot.getBoundingClientRect();
      Object.assign(ring.style, { left: `${place.left - now.left - 4}px`, top: `${place.top - now.top - 4}px`, width: `${place.width + 8}px`, height: `${place.height + 8}px` });
      point(row, place.left + place.width / 2, place.top + place.height);
      ring.hidden = false;
      said.textContent = `${at + 1} of ${all.length}: ${row.says}`;
    }
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: Infinity };
      if (event.key in steps) focus(steps[event.key]);
      else if (event.key === "Enter" && at in marks()) go(rowOf(marks()[at].__data__));
      else if (event.key === "Escape") hide();
      else return;
      event.preventDefault();
    });
    plot.addEventListener("blur", hide);

    function show() {
      // switches that all begin switched off leave everything on until one is chosen
      const on = facts.switches.map((group) => {
        const values = group.inputs.filter((input) => input.checked).map((input) => input.value);
        const every = !values.length && group.choices.every((choice) => !choice.on);
        return (row) => every || values.includes(row[group.field]);
      });
      const rows = facts.rows.filter((row) => on.every((shows) => shows(row)));
      at = -1;
      hide();
      count.textContent = `${rows.length} of ${facts.rows.length} ${facts.counted}`;
      box.dataset.shown = rows.length;
      // Vega marks the rows that it is given; the page keeps its own
      view.data("rows", rows.map((row) => ({ ...row }))).resize().runAsync().then(() => { box.dataset.state = "drawn"; });
    }
  }

  // The still figure has said the same: it stays beneath, folded.
  function foldStill(box) {
    const after = box.dataset.still === "after", side = after ? Node.DOCUMENT_POSITION_FOLLOWING : Node.DOCUMENT_POSITION_PRECEDING;
    const figures = [...document.querySelectorAll(".mvl-figure, .cell_output img, .bd-content p > img")];
    const beside = figures.filter((figure) => box.compareDocumentPosition(figure) & side && !figure.closest("details"));
    const still = after ? beside[0] : beside[beside.length - 1];
    if (!still) return;
    const details = element("details", box);
    element("summary", details, "The still figure");
    details.appendChild(still);
  }
});
