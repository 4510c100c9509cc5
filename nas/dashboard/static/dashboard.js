"use strict";
// A page is a function of its URL and of the studies. The server draws it; this script asks for what has changed, puts it
// in place without disturbing what the reader is doing, and draws the figures.
(() => {
  const EVERY_MS = 2000;
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  const first = JSON.parse(document.getElementById("figures").textContent);
  const figures = first.figures;
  const coarse = window.matchMedia("(pointer: coarse)");
  let version = first.version;
  let hashes = {};
  let asking = 0;
  let timer = 0;

  // -- figures ----------------------------------------------------------------------------------------------------

  const draw = (element) => {
    const figure = figures[element.dataset.figure];
    if (!figure || !window.Plotly) return;
    const resolved = hwnasPlots.resolved(figure, element);
    // What the reader has zoomed to stays while data arrive.
    resolved.layout.uirevision = location.pathname + JSON.stringify([resolved.layout.xaxis.type, resolved.layout.yaxis.type]);
    // A finger that scrolls the page must not zoom the figure that it passes.
    if (coarse.matches) resolved.layout.dragmode = false;
    hwnasPlots.draw(element, resolved, ["zoom2d", "pan2d", "resetScale2d"]);
    if ("pins" in element.dataset && !element.dataset.bound) {
      element.dataset.bound = "yes";
      element.on("plotly_click", (event) => {
        const pin = event.points.map((point) => point.customdata).find(Boolean);
        if (!pin) return;
        const url = new URL(location.href);
        const pins = url.searchParams.getAll("pin").filter((other) => other !== pin);
        url.searchParams.delete("pin");
        [...pins.slice(-1), pin].forEach((one) => url.searchParams.append("pin", one));
        go(url);
      });
    }
  };

  const drawAll = () => document.querySelectorAll(".plot").forEach(draw);

  const exportFigure = (name, format) => {
    const element = document.querySelector(`.plot[data-figure="${CSS.escape(name)}"]`);
    const card = getComputedStyle(document.documentElement).getPropertyValue("--card").trim();
    const layout = { ...element.layout, paper_bgcolor: card, plot_bgcolor: card };
    return window.Plotly.downloadImage({ data: element.data, layout },
      { format, filename: name, width: 1100, height: 620, scale: format === "png" ? 2 : 1 });
  };

  // -- updates ----------------------------------------------------------------------------------------------------

  const isElement = (node) => node.nodeType === Node.ELEMENT_NODE;
  const keyOf = (node) => (isElement(node) ? node.dataset.key || node.id : "");
  const alike = (a, b) => a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

  // The node of `old` from `place` on that stands for `node`, so that it can be kept.
  const standIn = (node, place, keyed) => {
    if (keyOf(node)) return keyed.get(keyOf(node)) || null;
    if (!place || alike(place, node)) return place;
    if (!isElement(node)) return null;
    for (let later = place.nextSibling; later; later = later.nextSibling) {
      if (alike(later, node) && later.className === node.className) return later;
    }
    return null;
  };

  // Make `old` like `fresh`, keeping every node that is the same, and with it focus, ticks, scroll and open details.
  const morph = (old, fresh) => {
    const keyed = new Map([...old.children].filter(keyOf).map((node) => [keyOf(node), node]));
    let place = old.firstChild;
    for (const node of [...fresh.childNodes]) {
      const now = standIn(node, place, keyed);
      if (!now) { old.insertBefore(node, place); continue; }
      if (now !== place) old.insertBefore(now, place);
      if (!now.isEqualNode(node)) {
        if (!isElement(now)) now.nodeValue = node.nodeValue;
        else if (!now.classList.contains("plot")) { attributes(now, node); morph(now, node); }
      }
      place = now.nextSibling;
    }
    while (place) { const next = place.nextSibling; place.remove(); place = next; }
  };

  const attributes = (old, fresh) => {
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    if (old === document.activeElement) return;
    if (old.nodeName === "INPUT" && old.type === "search") old.value = fresh.getAttribute("value") || "";
    // Ticks that stand in the URL follow it; ticks of the reader's own selection are the reader's.
    if (old.nodeName === "INPUT" && old.form && "live" in old.form.dataset) old.checked = fresh.hasAttribute("checked");
  };

  const refresh = async (whole) => {
    const mine = ++asking;
    const url = new URL(`/live${location.pathname}`, location.origin);
    url.search = location.search;
    if (!whole) url.searchParams.set("version", version);
    url.searchParams.set("have", Object.values(hashes).join("."));
    try {
      const answer = await fetch(url, { headers: { Accept: "application/json" } });
      if (mine !== asking) return;
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) { lost("this page cannot be drawn now: see the terminal"); return; }
      if (answer.status !== 204) put(await answer.json());
      live.textContent = "live";
      live.classList.remove("lost");
    } catch {
      if (mine === asking) lost("no answer: is nas dashboard running?");
    }
  };

  const lost = (text) => {
    live.textContent = text;
    live.classList.add("lost");
  };

  const put = ({ version: now, hashes: known, pieces }) => {
    const changed = new Set();
    for (const [name, piece] of Object.entries(pieces)) {
      if (!name.startsWith("figure:")) continue;
      figures[name.slice(7)] = piece;
      changed.add(name.slice(7));
    }
    if ("html" in pieces) {
      const fresh = document.createElement("main");
      fresh.innerHTML = pieces.html;
      morph(main, fresh);
    }
    main.querySelectorAll(".plot").forEach((plot) => {
      if (changed.has(plot.dataset.figure) || !plot.classList.contains("js-plotly-plot")) draw(plot);
    });
    version = now;
    hashes = known;
    document.body.dataset.version = now;
    tick();
  };

  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (!document.hidden) await refresh(false);
      wait();
    }, EVERY_MS);
  };

  // -- what the reader does -----------------------------------------------------------------------------------------

  const go = (url) => {
    history.pushState(null, "", url);
    document.querySelectorAll("[data-page-link]").forEach((link) => {
      const target = new URL(link.href);
      target.search = new URLSearchParams(new URL(location.href).searchParams.getAll("study").map((s) => ["study", s])).toString();
      link.href = target;
    });
    return refresh(true);
  };

  const submit = (form) => {
    const url = new URL(form.action, location.origin);
    const options = new URLSearchParams();
    new FormData(form).forEach((value, name) => { if (value !== "") options.append(name, value); });
    url.search = options.toString();
    return go(url);
  };

  let typing = 0;
  main.addEventListener("input", (event) => {
    const form = event.target.form;
    if (!form || !("live" in form.dataset)) return;
    clearTimeout(typing);
    typing = setTimeout(() => submit(form), event.target.type === "search" ? 250 : 0);
  });
  main.addEventListener("submit", (event) => {
    if ("live" in event.target.dataset) { event.preventDefault(); submit(event.target); }
  });
  main.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-export]");
    if (button) { exportFigure(button.dataset.of, button.dataset.export); return; }
    const link = event.target.closest("a[data-live]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(new URL(link.href));
  });
  addEventListener("popstate", () => refresh(true));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(false); });

  // -- moments ------------------------------------------------------------------------------------------------------

  const tick = () => document.querySelectorAll("time[data-moment]").forEach((element) => {
    const passed = Date.now() / 1000 - Number(element.dataset.moment);
    if (passed < 60) element.textContent = "just now";
    else if (passed < 3600) element.textContent = `${Math.floor(passed / 60)} min ago`;
    else if (passed < 86400) element.textContent = `${Math.floor(passed / 3600)} h ago`;
    else element.textContent = new Date(Number(element.dataset.moment) * 1000).toLocaleDateString();
  });

  hwnasPlots.onThemeChange(drawAll);
  drawAll();
  tick();
  setInterval(tick, 30000);
  document.body.dataset.version = version;
  wait();
})();
