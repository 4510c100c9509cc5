"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);

  const draw = (element) => {
    const figure = hwnasPlots.resolved(figures[element.dataset.figure], element);
    const button = element.parentElement.querySelector(".log");
    if (button && button.getAttribute("aria-pressed") === "true") {
      figure.layout.xaxis.type = "log";
      delete figure.layout.xaxis.rangemode;
    }
    hwnasPlots.draw(element, figure, ["toImage", "zoom2d", "pan2d", "resetScale2d"]);
  };

  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(draw);
  hwnasPlots.onThemeChange(() => plots.forEach(draw));
  document.querySelectorAll(".log").forEach((button) => {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      draw(button.parentElement.querySelector(".plot"));
    });
  });
})();
