"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const button = document.getElementById("theme");

  // A figure brings its data; text, lines and background are the page's.
  function layoutOf(figure, width) {
    const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line") };
    const layout = figure.layout;
    return {
      ...layout,
      xaxis: { ...axis, automargin: true, ...layout.xaxis },
      yaxis: { ...axis, automargin: true, ...layout.yaxis },
      height: layout.height || 300,
      font: { color: color("--text"), size: width < 500 ? 11 : 12 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 12, t: 28, b: 44 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" },
      showlegend: figure.data.length > 1,
      hoverlabel: { bgcolor: color("--card"), font: { color: color("--text") } },
      dragmode: false,
    };
  }

  function paint() {
    button.querySelector("span").textContent = isDark() ? "light" : "dark";
    for (const place of document.querySelectorAll("[data-figure]")) {
      const figure = figures[place.dataset.figure];
      Plotly.react(place, structuredClone(figure.data), layoutOf(figure, place.clientWidth), {
        responsive: true,
        displayModeBar: false,
      });
    }
  }

  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    paint();
  });
  system.addEventListener("change", paint);

  const chosen = document.getElementById("class");
  if (chosen) {
    root.style.setProperty("--count", chosen.options.length);
    chosen.addEventListener("change", () => root.style.setProperty("--class", chosen.value));
    const why = document.getElementById("why");
    why.addEventListener("change", () => {
      for (const row of document.querySelectorAll(".row")) {
        row.hidden = why.value !== "" && row.dataset.why !== why.value;
      }
    });
  }
  paint();
})();
