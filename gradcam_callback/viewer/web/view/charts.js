// Lines over the looks of a probe: probabilities, gradient norm and drift; one line a run.

/** @import {App} from "../app.js" */
/** @import {Row, Scene} from "../rows.js" */
import { identityOf } from "../identity.js";
import { drift, layerOf, place } from "../looks.js";
import { lookAt } from "../rows.js";
import { html } from "../vendor/lit-html/lit-html.js";
import uPlot from "../vendor/uplot/uPlot.esm.js";

const HEIGHT = 118; // CSS pixels
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];

/**
 * A number of each run at each position; null where there is none.
 * @typedef {(number | null)[][]} Lines
 */

/** @param {App} app @param {Scene} scene @param {Row} row */
export function charts(app, scene, row) {
  const [labels, predictions, norms, drifts] = linesOf(scene, row);
  return html`<div class="charts">
    ${chart(app, scene, row, "Label probability", labels, [0, 1])}
    ${chart(app, scene, row, "Prediction probability", predictions, [0, 1])}
    ${chart(app, scene, row, "Gradient norm", norms, null)} ${chart(app, scene, row, "Drift", drifts, null)}
  </div>`;
}

/** @type {WeakMap<object, Map<string, Lines[]>>} */
const known = new WeakMap();

/** The lines of all charts; computed once, since a step of the slider does not change them. @param {Scene} scene @param {Row} row */
function linesOf(scene, row) {
  const ofTimeline = known.get(scene.timeline) ?? new Map();
  known.set(scene.timeline, ofTimeline);
  const key = [row.key, row.probes, scene.state.layer, scene.targets[0]].join("|");
  if (!ofTimeline.has(key)) ofTimeline.set(key, computeLines(scene, row));
  return /** @type {Lines[]} */ (ofTimeline.get(key));
}

/** @param {Scene} scene @param {Row} row @returns {Lines[]} */
function computeLines(scene, row) {
  const target = (/** @type {number} */ run) =>
    Math.max(0, scene.series[run].targets.indexOf(scene.targets[0]));
  const ofProbe = (/** @type {"labelProbabilities" | "predictionProbabilities"} */ name) =>
    lines(scene, row, (run, look, probe) => scene.series[run][name][look * scene.series[run].probes + probe]);
  const norms = lines(scene, row, (run, look, probe) => {
    const layer = layerOf(scene.series[run], scene.state);
    return layer ? layer.norms[place(scene.series[run], look, target(run), probe)] : NaN;
  });
  const drifts = lines(scene, row, (run, look, probe) => {
    const layer = layerOf(scene.series[run], scene.state);
    return layer && look > 0 ? drift(scene.series[run], layer, target(run), probe, look, look - 1) : NaN;
  });
  return [ofProbe("labelProbabilities"), ofProbe("predictionProbabilities"), norms, drifts];
}

/** @param {Scene} scene @param {Row} row @param {(run: number, look: number, probe: number) => number} number @returns {Lines} */
function lines(scene, row, number) {
  return scene.series.map((_, run) =>
    scene.timeline.positions.map((_, at) => {
      const look = lookAt(scene, run, at);
      const probe = row.probes[run];
      if (look < 0 || probe < 0 || scene.timeline.stale[run][at]) return null;
      const value = number(run, look, probe);
      return Number.isFinite(value) ? value : null;
    }),
  );
}

/**
 * @param {App} app @param {Scene} scene @param {Row} row @param {string} title @param {Lines} values
 * @param {[number, number] | null} range
 */
function chart(app, scene, row, title, values, range) {
  const hasValues = values.some((line) => line.some((value) => value !== null));
  const now = values.map((line) => line[scene.index]).filter((value) => value !== null);
  const told = now.map((value) => /** @type {number} */ (value).toPrecision(3)).join(", ");
  const paint = (/** @type {ChartHost} */ host) => drawChart(host, app, scene, values, range);
  return html`<figure class="chart" ?hidden=${!hasValues}>
    <figcaption>${title} <b>${told}</b></figcaption>
    <div
      class="painted plot"
      role="img"
      aria-label="${title} over the looks; now ${told || "none"}"
      .paintKey=${[row.key, scene.state.layer, scene.targets[0], identityOf(scene.timeline), scene.index].join()}
      .paint=${paint}
    ></div>
  </figure>`;
}

/** @typedef {HTMLElement & {plot?: uPlot, shape?: string, values?: Lines, now?: number, go?: (index: number) => void}} ChartHost */

/** @param {ChartHost} host @param {App} app @param {Scene} scene @param {Lines} values @param {[number, number] | null} range */
function drawChart(host, app, scene, values, range) {
  const xs = scene.timeline.positions.map(Number);
  const shape = `${values.length} ${document.body.className} ${matchMedia("(prefers-color-scheme: dark)").matches}`;
  host.go = (index) => app.go(index);
  if (!host.plot || host.shape !== shape) {
    host.plot?.destroy();
    host.replaceChildren();
    host.plot = makePlot(host, values.length, xs, values, range);
    host.shape = shape;
  } else {
    const width = host.clientWidth || 240;
    if (host.plot.width !== width) host.plot.setSize({ width, height: HEIGHT });
    if (host.values !== values) host.plot.setData([xs, ...values]);
  }
  host.values = values;
  host.now = xs[scene.index];
  placeMark(host);
}

/** Marks the position of the slider. @param {ChartHost} host */
function placeMark({ plot, now }) {
  if (!plot || now === undefined) return;
  const mark = /** @type {HTMLElement} */ (plot.over.querySelector(".here") ?? document.createElement("i"));
  mark.className = "here";
  mark.style.left = `${plot.valToPos(now, "x")}px`;
  plot.over.append(mark);
}

/** @param {ChartHost} host @param {number} count @param {number[]} xs @param {Lines} values @param {[number, number] | null} range */
function makePlot(host, count, xs, values, range) {
  const style = getComputedStyle(host);
  const ink = style.getPropertyValue("--soft-ink");
  const rule = style.getPropertyValue("--rule");
  const axis = {
    stroke: ink,
    grid: { stroke: rule, width: 1 },
    ticks: { stroke: rule, size: 4 },
    font: "11px system-ui",
  };
  const colours = Array.from({ length: count }, (_, run) => style.getPropertyValue(`--run-${run + 1}`));
  const plot = new uPlot(
    {
      width: host.clientWidth || 240,
      height: HEIGHT,
      legend: { show: false },
      hooks: { draw: [() => placeMark(host)] }, // a new plot knows its scales only then
      cursor: { drag: { x: false, y: false }, y: false },
      scales: { x: { time: false }, ...(range ? { y: { range } } : {}) },
      axes: [
        { ...axis, size: 24, space: 40, incrs: WHOLE },
        { ...axis, size: 42, space: 28 },
      ],
      series: [
        {},
        ...colours.map((stroke) => ({
          stroke,
          width: 1.5,
          spanGaps: true,
          points: { show: xs.length < 30 },
        })),
      ],
    },
    /** @type {any} */ ([xs, ...values]),
    host,
  );
  plot.over.addEventListener("click", () => {
    if (typeof plot.cursor.idx === "number") host.go?.(plot.cursor.idx);
  });
  return plot;
}
