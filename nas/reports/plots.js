"use strict";
// Draws figures of a page. Figures name CSS variables; Plotly wants colours.
const hwnasPlots = (() => {
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const name = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    }
    return value;
  };

  const resolved = (figure, element) => {
    const found = resolve(figure, getComputedStyle(document.documentElement));
    // Numbers in the cells of a heat map overlap on a phone.
    if (element.clientWidth < 520) found.data.forEach((trace) => delete trace.texttemplate);
    return found;
  };

  const draw = (element, figure, buttons) => {
    const config = { responsive: true, displaylogo: false, modeBarButtons: [buttons],
      toImageButtonOptions: { format: "svg", filename: element.dataset.figure } };
    return window.Plotly.react(element, figure.data, figure.layout, config);
  };

  const onThemeChange = (action) => {
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", action);
  };

  return { resolved, draw, onThemeChange };
})();
