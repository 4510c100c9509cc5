"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // Figures name CSS variables; Plotly wants colours.
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

  const draw = (element) => {
    const figure = resolve(figures[element.dataset.figure], getComputedStyle(document.documentElement));
    const button = element.parentElement.querySelector(".log");
    if (button && button.getAttribute("aria-pressed") === "true") {
      figure.layout.xaxis.type = "log";
      delete figure.layout.xaxis.rangemode;
    }
    // Numbers in the cells of a heat map overlap on a phone.
    if (element.clientWidth < 520) figure.data.forEach((trace) => delete trace.texttemplate);
    const config = { responsive: true, displaylogo: false,
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: { format: "svg", filename: element.dataset.figure } };
    window.Plotly.react(element, figure.data, figure.layout, config);
  };

  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(draw);
  dark.addEventListener("change", () => plots.forEach(draw));
  document.querySelectorAll(".log").forEach((button) => {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      draw(button.parentElement.querySelector(".plot"));
    });
  });
})();
