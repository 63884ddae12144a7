// What a look says of a probe: its map, its state in words, its prediction. Nothing here draws.

/** @import {AlertRecord, Layer, Run, Series, State} from "./types.js" */

export const OK = 0;
export const ABSENT = 4;
export const UNRECORDED = 255;
const STATES = ["ok", "no gradient", "zero gradient", "gradient not finite", "nothing to explain"];
const EMPTY = 1;
const BRIDGED = 2;
const SUBSTITUTED = 4;

/** @param {Series} series @param {number} look @param {number} target @param {number} probe */
export function place(series, look, target, probe) {
  return (look * series.targets.length + target) * series.probes + probe;
}

/** @param {Layer} layer @returns {number} */
export function cellsOf(layer) {
  return layer.shape.reduce((product, size) => product * size, 1);
}

/**
 * The levels of one map, 0..255.
 * @param {Series} series @param {Layer} layer @param {number} look @param {number} target @param {number} probe
 */
export function levelsAt(series, layer, look, target, probe) {
  const cells = cellsOf(layer);
  const start = place(series, look, target, probe) * cells;
  return layer.levels.subarray(start, start + cells);
}

/**
 * Why there is no map to draw, in words; empty where there is one.
 * @param {Series} series @param {Layer} layer @param {number} look @param {number} target @param {number} probe
 */
export function missingReason(series, layer, look, target, probe) {
  const at = place(series, look, target, probe);
  if (layer.states[at] === UNRECORDED) return "not recorded in this look";
  if (!Number.isNaN(layer.peaks[at])) return "";
  const cause = openAlert(series, layer, look)?.cause;
  const state = STATES[layer.states[at]] ?? "no map";
  return cause && layer.states[at] !== ABSENT ? `${state}: ${cause}` : state;
}

/**
 * What is to be said of a map that is drawn; empty mostly.
 * @param {Series} series @param {Layer} layer @param {number} look @param {number} target @param {number} probe
 */
export function remarkOn(series, layer, look, target, probe) {
  const flags = layer.flags[place(series, look, target, probe)];
  if (flags & BRIDGED) return `bridged: ${openAlert(series, layer, look)?.cause ?? "drawn across a cut"}`;
  if (flags & SUBSTITUTED) {
    return `${series.substitute || "another method"}: ${openAlert(series, layer, look)?.cause ?? "no gradient"}`;
  }
  return flags & EMPTY ? "empty: every channel speaks against it" : "";
}

/**
 * The alert about a layer that is open at a look.
 * @param {Series} series @param {Layer} layer @param {number} look
 * @returns {AlertRecord | undefined}
 */
export function openAlert(series, layer, look) {
  let open;
  for (const alert of series.alerts) {
    if (alert.look === -1 || alert.look > look) continue;
    if (alert.subject === layer.name || alert.layer === layer.name) {
      open = alert.status === "cleared" ? undefined : alert;
    }
  }
  return open;
}

/** @param {Series} series @param {number} index @returns {string} */
export function className(series, index) {
  if (index < 0) return "";
  return series.classNames?.[index] ?? String(index);
}

/** @param {number} probability @returns {string} */
function decimals(probability) {
  return Number.isNaN(probability) ? "" : probability.toFixed(2);
}

/**
 * What a target explains in a probe: "7 0.93".
 * @param {Series} series @param {number} look @param {number} target @param {number} probe
 */
export function explained(series, look, target, probe) {
  const at = place(series, look, target, probe);
  const probability = decimals(series.targetProbabilities[at]);
  const score = series.scores[at];
  const name = className(series, series.classes[at]);
  if (probability) return [name, probability].filter(Boolean).join(" ");
  if (!Number.isFinite(score)) return name;
  return name ? `${name}, score ${score.toPrecision(3)}` : score.toPrecision(4);
}

/** @param {Series} series @param {number} look @param {number} probe @returns {string} */
export function predicted(series, look, probe) {
  const at = look * series.probes + probe;
  const name = className(series, series.predictions[at]);
  return [name, decimals(series.predictionProbabilities[at])].filter(Boolean).join(" ");
}

/**
 * Whether the prediction is the label; null where that cannot be said.
 * @param {Series} series @param {number} look @param {number} probe
 * @returns {boolean | null}
 */
export function isRight(series, look, probe) {
  const label = probeSetAt(series, look)?.labels[probe] ?? null;
  const prediction = series.predictions[look * series.probes + probe];
  return label === null || prediction < 0 ? null : label === prediction;
}

/** @param {Series} series @param {number} look */
export function probeSetAt(series, look) {
  return series.probeSets[series.probeSetOf[look]];
}

/**
 * Where a probe stands in the set of a look: at the same position if it has that name there, else by its name.
 * @param {Series} series @param {number} look @param {string} name @param {number} guess
 */
export function findProbe(series, look, name, guess) {
  const names = probeSetAt(series, look)?.names ?? [];
  return names[guess] === name ? guess : names.indexOf(name);
}

/** @param {Run} run @param {State} state @returns {Series | undefined} */
export function seriesOf(run, state) {
  return run.series.find((one) => one.name === state.series) ?? run.series[0];
}

/** @param {Series} series @param {State} state @returns {Layer | null} */
export function layerOf(series, state) {
  return series.layers.find((layer) => layer.name === state.layer) ?? null;
}

/**
 * One minus the cosine between the maps of two looks; NaN where either is missing or zero.
 * @param {Series} series @param {Layer} layer @param {number} target @param {number} probe
 * @param {number} look @param {number} before
 */
export function drift(series, layer, target, probe, look, before) {
  const now = levelsAt(series, layer, look, target, probe);
  const then = levelsAt(series, layer, before, target, probe);
  let product = 0;
  let squares = 0;
  let others = 0;
  for (let i = 0; i < now.length; i++) {
    product += now[i] * then[i];
    squares += now[i] * now[i];
    others += then[i] * then[i];
  }
  const isDrawn = [look, before].every((e) => layer.peaks[place(series, e, target, probe)] > 0);
  return isDrawn && squares && others ? 1 - product / Math.sqrt(squares * others) : NaN;
}

/**
 * The highest peak of a probe over all looks, or of all probes.
 * @param {Series} series @param {Layer} layer @param {number} target @param {number} [probe]
 */
export function highestPeak(series, layer, target, probe) {
  let highest = 0;
  for (let look = 0; look < series.epochs.length; look++) {
    const first = probe ?? 0;
    const last = probe ?? series.probes - 1;
    for (let n = first; n <= last; n++) {
      const peak = layer.peaks[place(series, look, target, n)];
      if (peak > highest) highest = peak;
    }
  }
  return highest;
}
