// Shows the pictures of the page: a card for each, with its progress, then a slider between before and after.
"use strict";
(() => {
  const ZOOMS = [1, 2, 4, 8];
  const cards = new Map(); // id -> card; a card lives as long as its picture, so that sliders keep their place

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // Two pictures of one size, one over the other. The line between them is moved by mouse, touch or arrow keys; drawn
  // larger, the picture is moved by dragging it next to the line.
  function comparison(picture) {
    const image = (side, alt) => element("img", {src: picture[side], alt, draggable: "false"});
    const before = element("div", {class: "layer"}, image("before", `${picture.name}, before`));
    const after = element("div", {class: "layer after"}, image("after", `${picture.name}, after`));
    const line = element("div", {class: "line"}, element("span", {class: "knob", "aria-hidden": "true"}));
    // As wide as the page allows, but no larger than its pixels and no taller than the window. Panoramas and strips have
    // room above or beside them, which they fill when they are zoomed.
    const clamp = (value, least, most) => Math.min(Math.max(value, least), most);
    const ratio = picture.width / picture.height, shown = clamp(ratio, .4, 4);
    const width = `min(100%, ${Math.max(picture.width, 320)}px, calc(80vh * ${shown}))`;
    const style = `aspect-ratio: ${shown}; width: ${width}${shown === ratio ? "" : "; background: none"}`;
    const view = element("div", {class: "view", style}, before, after,
      element("b", {class: "tag left"}, "before"), element("b", {class: "tag right"}, "after"), line);
    const range = element("input", {type: "range", min: 0, max: 100, step: 1, value: 50,
      "aria-label": `${picture.name}: share of the picture that is shown as it was before, in percent`});
    const zoomed = element("output", {class: "zoom"});
    const out = element("button", {type: "button", "aria-label": "Zoom out"}, "−");
    const closer = element("button", {type: "button", "aria-label": "Zoom in"}, "+");
    const box = element("div", {class: "comparison"}, view, element("div", {class: "controls"}, range, out, zoomed, closer));

    let at = 50, zoom = 1, x = 0, y = 0; // x, y: how far the picture is moved, in pixels of the page
    function draw() {
      const {clientWidth: width, clientHeight: height} = view;
      x = clamp(x, width * (1 - zoom), 0);
      y = clamp(y, height * (1 - zoom), 0);
      for (const layer of [before, after])
        layer.firstChild.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
      view.style.setProperty("--at", `${at}%`);
      view.classList.toggle("zoomed", zoom > 1);
      zoomed.textContent = `${zoom}×`;
      out.disabled = zoom === ZOOMS[0];
      closer.disabled = zoom === ZOOMS.at(-1);
      range.value = at;
    }
    // The point under (px, py) of the view stays where it is.
    function zoomTo(next, px = view.clientWidth / 2, py = view.clientHeight / 2) {
      next = clamp(next, ZOOMS[0], ZOOMS.at(-1));
      x = px - (px - x) * next / zoom;
      y = py - (py - y) * next / zoom;
      zoom = next;
      draw();
    }
    const step = direction => zoomTo(ZOOMS[clamp(ZOOMS.findLastIndex(z => z <= zoom + .01) + direction, 0, ZOOMS.length - 1)]);
    out.onclick = () => step(Number.isInteger(Math.log2(zoom)) ? -1 : 0);
    closer.onclick = () => step(1);
    range.oninput = () => { at = Number(range.value); draw(); };

    const pointers = new Map();
    let dragged = null; // "line", "picture", or null
    const place = event => {
      const area = view.getBoundingClientRect();
      return [event.clientX - area.left, event.clientY - area.top];
    };
    const span = () => {
      const [[ax, ay], [bx, by]] = [...pointers.values()];
      return {length: Math.hypot(ax - bx, ay - by), x: (ax + bx) / 2, y: (ay + by) / 2};
    };
    view.onpointerdown = event => {
      if (event.pointerType === "mouse" && event.button) return;
      const [px, py] = place(event);
      pointers.set(event.pointerId, [px, py]);
      view.setPointerCapture(event.pointerId);
      const near = Math.abs(px - view.clientWidth * at / 100) < 28;
      dragged = pointers.size > 1 ? null : zoom === 1 || near ? "line" : "picture";
      if (dragged === "line" && event.pointerType === "mouse") { at = clamp(100 * px / view.clientWidth, 0, 100); draw(); }
    };
    view.onpointermove = event => {
      if (!pointers.has(event.pointerId)) return;
      const [px, py] = place(event), [lastX, lastY] = pointers.get(event.pointerId);
      const earlier = pointers.size === 2 ? span() : null;
      pointers.set(event.pointerId, [px, py]);
      if (earlier) {
        const now = span();
        x += now.x - earlier.x;
        y += now.y - earlier.y;
        zoomTo(zoom * now.length / earlier.length, now.x, now.y);
      } else if (dragged === "line") {
        at = clamp(100 * px / view.clientWidth, 0, 100);
        draw();
      } else if (dragged === "picture") {
        x += px - lastX;
        y += py - lastY;
        draw();
      }
    };
    view.onpointerup = view.onpointercancel = event => { pointers.delete(event.pointerId); dragged = null; };
    view.ondblclick = event => zoom > 1 ? zoomTo(1) : zoomTo(2, ...place(event));
    // Pinching a touchpad arrives as a wheel with Ctrl; a plain wheel scrolls the page.
    view.addEventListener("wheel", event => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoomTo(zoom * Math.exp(-event.deltaY / 200), ...place(event));
    }, {passive: false});
    new ResizeObserver(draw).observe(view);
    return box;
  }

  function card(picture) {
    const text = element("span", {class: "text"}), bar = element("progress", {max: 1, value: 0});
    bar.setAttribute("aria-label", picture.name);
    const hint = element("p", {class: "hint", hidden: ""});
    const box = element("article", {class: "picture"},
      element("header", {}, element("b", {}, picture.name), text), bar, hint);
    return {box, text, bar, hint, shown: null};
  }

  function update(picture) {
    if (!cards.has(picture.id)) cards.set(picture.id, card(picture));
    const {box, text, bar, hint} = cards.get(picture.id);
    box.dataset.state = picture.state;
    if (text.textContent !== picture.text) text.textContent = picture.text;
    bar.hidden = !["waiting", "working"].includes(picture.state);
    bar.value = picture.share ?? 0;
    hint.hidden = !picture.hint;
    hint.textContent = picture.hint;
    const known = cards.get(picture.id);
    if (picture.result && known.shown !== picture.result) {
      known.shown = picture.result;
      box.querySelector(".comparison")?.remove();
      box.querySelector("a.download")?.remove();
      box.append(comparison(picture), element("a", {class: "download", href: picture.result, download: picture.file},
        `Download ${picture.file}`));
    }
    return box;
  }

  window.showPictures = json => {
    const root = document.getElementById("pictures");
    if (!root) return setTimeout(() => window.showPictures(json), 50); // the page is still being built
    const {pictures, archive, problems = []} = JSON.parse(json);
    const here = new Set(pictures.map(picture => picture.id));
    for (const [id, {box}] of cards) if (!here.has(id)) { box.remove(); cards.delete(id); }
    let all = root.querySelector(":scope > a.all");
    if (!archive) all?.remove();
    else if (!all) root.append(all = element("a", {class: "download all", download: "upscaled.zip"}, "Download all (ZIP)"));
    if (archive && all.getAttribute("href") !== archive) all.href = archive;
    root.querySelectorAll(":scope > .problem").forEach(line => line.remove());
    root.prepend(...problems.map(line => element("p", {class: "problem", role: "alert"}, line)));
    for (const picture of pictures) {
      const box = update(picture);
      if (!box.isConnected) root.append(box);
    }
  };
})();
