"use strict";

// Draws the figures of the page, in the colours of its style sheet.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  // On a touch screen a finger that moves over a chart scrolls the page instead of zooming.
  const touch = matchMedia("(pointer: coarse)").matches;
  const narrow = matchMedia("(max-width: 40rem)").matches;
  const PRINT_WIDTH = 640;

  const config = {
    responsive: true,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]],
    toImageButtonOptions: { scale: 2 },
  };

  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  function translucent(hex, opacity) {
    const channels = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    return `rgba(${channels.join(", ")}, ${opacity})`;
  }

  function painted(trace) {
    const { series, fill, bars, ink } = trace.meta;
    if (bars) {
      const colours = bars.map((bar) => colour(bar === null ? "accent" : `series-${bar}`));
      return { ...trace, marker: { ...trace.marker, color: colours } };
    }
    const main = colour(ink ? "ink" : `series-${series}`);
    const copy = { ...trace, marker: { ...trace.marker, color: main } };
    if (trace.line) copy.line = { ...trace.line, color: main };
    if (fill) copy.fillcolor = translucent(main, fill);
    for (const error of ["error_x", "error_y"]) {
      if (trace[error]) copy[error] = { ...trace[error], color: main };
    }
    return copy;
  }

  function themed(layout, width) {
    const [ink, muted, grid, line, card] = ["ink", "muted", "grid", "line", "card"].map(colour);
    const axis = {
      gridcolor: grid,
      zerolinecolor: muted,
      linecolor: line,
      tickfont: { color: muted },
      fixedrange: touch,
      spikecolor: muted,
      spikethickness: 1,
      spikedash: "solid",
    };
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink };
    return {
      ...layout,
      autosize: !width,
      width,
      xaxis: { ...layout.xaxis, ...axis, showspikes: layout.hovermode === "x unified" },
      yaxis: { ...layout.yaxis, ...axis, showspikes: false },
      font,
      hoverlabel: { bgcolor: card, bordercolor: muted, font: { ...font, size: narrow ? 11 : 12.5 } },
      modebar: { bgcolor: "rgba(0, 0, 0, 0)", color: muted, activecolor: ink },
      // Not transparent: an image saved from a dark page must be readable anywhere.
      paper_bgcolor: card,
      plot_bgcolor: card,
      dragmode: touch ? false : "zoom",
      uirevision: "page", // keep the reader's zoom when colours or curves change
    };
  }

  function draw(plot, width) {
    const figure = figures[plot.dataset.figure];
    return Plotly.react(plot, figure.data.map(painted), themed(figure.layout, width), config);
  }

  const drawAll = (width) => Promise.all(plots.map((plot) => draw(plot, width)));

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".legend button");
    if (!button) return;
    const visible = button.getAttribute("aria-pressed") !== "true";
    const { data } = figures[button.dataset.figure];
    for (const index of JSON.parse(button.dataset.traces)) data[index].visible = visible;
    button.setAttribute("aria-pressed", String(visible));
    draw(plots.find((plot) => plot.dataset.figure === button.dataset.figure));
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());

  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    drawAll(PRINT_WIDTH);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    drawAll();
  });

  drawAll();
})();
