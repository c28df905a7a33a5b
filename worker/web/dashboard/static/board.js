// What htmx does not do: plots, and a page that is fetched anew when its job has moved on. Every page works without.
"use strict";

(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // What each kind of plot shows: a name, how it is computed, a colour of the style sheet.
  const SHOWS = {
    // Stacked: the tallest is drawn first, the ones that stand before it over it.
    jobs: [
      ["cancelled, refused", (drawn) => drawn.succeeded.map((good, at) => good + drawn.failed[at] + drawn.others[at]), "--calm"],
      ["failed", (drawn) => drawn.succeeded.map((good, at) => good + drawn.failed[at]), "--bad"],
      ["succeeded", (drawn) => drawn.succeeded, "--good"],
    ],
    credits: [
      ["committed", (drawn) => drawn.charged, "--active"],
      ["returned", (drawn) => drawn.refunded, "--warn"],
    ],
    success: [
      ["% succeeded", (drawn) => drawn.succeeded.map((good, at) => {
        const ended = good + drawn.failed[at];
        return ended ? Math.round(1000 * good / ended) / 10 : null;
      }), "--good"],
    ],
  };

  const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 16);

  const axis = () => ({
    stroke: colour("--quiet"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: "11px system-ui, sans-serif",
  });

  const series = (kind) => SHOWS[kind].map(([label, , stroke]) => ({
    label,
    stroke: colour(stroke),
    width: 1.5,
    fill: kind === "jobs" ? colour(stroke) : undefined,
    points: { show: kind === "success", size: 4 },
    spanGaps: kind === "success",
    paths: { jobs: uPlot.paths.bars({ size: [0.8, 20], gap: 1 }), credits: uPlot.paths.stepped({ align: 1 }) }[kind],
  }));

  const draw = (box, drawn) => {
    const kind = box.dataset.shows;
    // Where there is nothing, nothing is drawn: not a bar of no height.
    const seen = (values) => (kind === "jobs" ? values.map((value) => value || null) : values);
    const values = [drawn.at, ...SHOWS[kind].map(([, of]) => seen(of(drawn)))];
    if (box.plot) {
      box.plot.setData(values);
      return;
    }
    box.plot = new uPlot({
      width: box.clientWidth,
      height: 170,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      legend: { live: false },
      cursor: { y: false },
      scales: { y: kind === "success" ? { range: [0, 100] } : { range: (_, low, high) => [0, Math.max(high, 1) * 1.05] } },
      series: [{}, ...series(kind)],
      axes: [{ ...axis(), values: (_, splits) => splits.map(clock) }, { ...axis(), size: 46 }],
    }, values, box);
  };

  const refresh = async (box) => {
    try {
      const answer = await fetch(box.dataset.plot, { headers: { accept: "application/json" } });
      if (answer.ok) draw(box, await answer.json());
    } catch {
      // The next round will tell; the figures say by themselves when the server is away.
    }
  };

  const plots = () => [...document.querySelectorAll(".plot[data-plot]")];
  const refreshAll = () => { if (!document.hidden) plots().forEach(refresh); };

  const redraw = () => plots().forEach((box) => {
    if (!box.plot) return;
    box.plot.destroy();
    box.plot = null;
    refresh(box);
  });

  // A stream that is silent for so long is lost, whatever the browser thinks of it. One of figures speaks each second,
  // and every five while PostgreSQL does not answer.
  const SILENT_MS = 12_000;

  const watchOver = (stream) => {
    const line = document.getElementById("lost");
    const beats = "beats" in stream.dataset;
    let heard = Date.now();
    let broken = false;
    let out = false;
    const show = () => {
      const lost = out || broken || (beats && !document.hidden && Date.now() - heard > SILENT_MS);
      document.body.classList.toggle("lost", lost);
      if (line.hidden && lost) {
        const since = new Date(heard).toISOString().slice(11, 19);
        line.textContent = `Nothing new has come since ${since} UTC: what stands here is from before. It is asked for again. `;
      }
      if (out && !line.querySelector("a")) {
        line.textContent = "You are not signed in any more: what stands here is from before. ";
        line.append(Object.assign(document.createElement("a"), { href: "/sign-in", textContent: "Sign in" }));
      }
      line.hidden = !lost;
    };
    const hear = () => { heard = Date.now(); broken = out = false; show(); };
    for (const name of ["htmx:sse:after:connection", "htmx:sse:after:message"]) stream.addEventListener(name, hear);
    stream.addEventListener("htmx:sse:error", (event) => {
      broken = true;
      out = event.detail.status === 401;
      show();
    });
    // In the background nothing is asked for.
    document.addEventListener("visibilitychange", () => { if (!document.hidden) heard = Date.now(); });
    setInterval(show, 1000);
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("[hx-sse\\:connect]").forEach(watchOver);
    if (window.uPlot && plots().length) {
      refreshAll();
      const stream = document.querySelector("[data-plots-on]");
      if (stream) {
        // One message for all plots, made once for everybody who looks.
        stream.addEventListener(stream.dataset.plotsOn, (event) => {
          const drawn = JSON.parse(event.detail.data);
          plots().forEach((box) => draw(box, drawn[box.dataset.span]));
        });
      } else {
        setInterval(refreshAll, 30_000);
      }
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
      let width = innerWidth;
      addEventListener("resize", () => {
        if (innerWidth === width) return;
        width = innerWidth;
        plots().forEach((box) => box.plot?.setSize({ width: box.clientWidth, height: 170 }));
      });
    }
    for (const box of document.querySelectorAll("[data-reload-on]")) {
      box.addEventListener(box.dataset.reloadOn, () => {
        if (!document.querySelector("details.act[open]")) {
          location.reload();
          return;
        }
        // Never under somebody's hands: an open form keeps the page as it is, which says so.
        if (document.getElementById("moved")) return;
        const line = Object.assign(document.createElement("p"), { id: "moved", className: "notice warn", role: "status" });
        line.append("This has moved on since the page was opened. ");
        line.append(Object.assign(document.createElement("a"), { href: location.href, textContent: "Show it anew" }));
        document.getElementById("content").prepend(line);
      });
    }
  });
})();
