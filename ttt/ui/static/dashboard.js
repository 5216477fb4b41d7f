// Values under the pointer in the dashboard's plots, and the link to the run that is shown. Independent of the server.
(() => {
  "use strict";

  const format = (value, kind) => {
    if (kind === "time") return new Date(value * 1000).toISOString().slice(0, 16).replace("T", " ");
    return kind === "whole" || Math.abs(value) >= 1000
      ? Math.round(value).toLocaleString("en")
      : String(Number(value.toPrecision(3)));
  };

  const nearest = (area, x) => {
    let best = null;
    for (const line of area.querySelectorAll("polyline"))
      for (const point of line.points)
        if (!best || Math.abs(point.x - x) < Math.abs(best.x - x)) best = point;
    return best;
  };

  const hide = (area) => {
    const read = area.querySelector(".ttt-read");
    if (read) read.remove();
  };

  document.addEventListener("pointermove", (event) => {
    const area = event.target.closest ? event.target.closest(".ttt-area") : null;
    for (const other of document.querySelectorAll(".ttt-area:has(.ttt-read)")) if (other !== area) hide(other);
    if (!area) return;
    const box = area.getBoundingClientRect();
    const point = nearest(area, (1000 * (event.clientX - box.left)) / box.width);
    if (!point) return;
    const [left, right, kind] = area.dataset.x.split(" ");
    const [low, high, unit] = area.dataset.y.split(" ");
    const x = Number(left) + ((Number(right) - Number(left)) * point.x) / 1000;
    const y = Number(high) - ((Number(high) - Number(low)) * point.y) / 1000;
    let read = area.querySelector(".ttt-read");
    if (!read) {
      read = document.createElement("div");
      read.className = "ttt-read";
      read.append(document.createElement("i"), document.createElement("span"));
      area.append(read);
    }
    read.style.left = point.x / 10 + "%";
    read.firstChild.style.top = point.y / 10 + "%";
    read.lastChild.textContent = format(y, unit) + " at " + format(x, kind);
    read.classList.toggle("ttt-left", point.x > 500);
  });

  window.ttt = window.ttt || {};
  // Keep the address a link to the chosen run.
  window.ttt.addressOf = (query) => {
    const address = new URL(window.location.href);
    for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
    window.history.replaceState(null, "", address);
  };
})();
