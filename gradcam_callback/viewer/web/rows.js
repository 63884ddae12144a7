// Which probes are shown, in which order, and what tiles each has.

/** @import {Layer, Series, Shown, State, Tile} from "./types.js" */
/** @import {Timeline} from "./timeline.js" */
import { drift, findProbe, isRight, layerOf, openAlert, place, predicted, probeSetAt, OK } from "./looks.js";
import { indexOf } from "./timeline.js";

/**
 * What is shown now.
 * @typedef {object} Scene
 * @property {State} state
 * @property {string[]} names of the runs
 * @property {Series[]} series one a run
 * @property {Timeline} timeline
 * @property {number} index of the position
 * @property {number} pinned index of the other position
 * @property {string[]} targets titles that are shown
 * @property {Shown[]} together each of them in each run
 * @property {Row[]} rows
 * @property {Row[]} all before they were filtered
 */

/**
 * One probe.
 * @typedef {object} Row
 * @property {string} key
 * @property {string} name
 * @property {number} position in the first run's probes
 * @property {number[]} probes its position in each run; -1: it has none of this name
 */

/** @param {string[]} names @param {Series[]} series @param {Timeline} timeline @param {State} state @returns {Scene} */
export function makeScene(names, series, timeline, state) {
  const index = indexOf(timeline, state.position);
  const titles = [...new Set(series.flatMap((one) => one.targets))];
  const chosen = titles.filter((title) => state.targets.includes(title));
  const scene = {
    state,
    names,
    series,
    timeline,
    index,
    pinned: indexOf(timeline, state.pinned || "0"),
    targets: chosen.length ? chosen : titles,
    together: /** @type {Shown[]} */ ([]),
    rows: /** @type {Row[]} */ ([]),
    all: /** @type {Row[]} */ ([]),
  };
  scene.together = shownTargets(scene);
  scene.all = allRows(scene);
  scene.rows = sorted(
    scene.all.filter((row) => passes(scene, row)),
    scene,
  );
  return scene;
}

/** @param {Scene} scene @returns {Shown[]} */
function shownTargets({ series, targets, state }) {
  const all = series.flatMap((one) =>
    targets.map((title) => ({ series: one, layer: layerOf(one, state), target: one.targets.indexOf(title) })),
  );
  return all.filter(({ target }) => target >= 0);
}

/** @param {Scene} scene @returns {Row[]} */
function allRows({ series, timeline, index }) {
  /** @type {Map<string, Row>} */
  const rows = new Map();
  series.forEach((one, run) => {
    const set = probeSetAt(one, Math.max(0, timeline.looks[run][index]));
    const names = set?.names ?? Array.from({ length: one.probes }, (_, i) => `#${i}`);
    names.forEach((name, position) => {
      const key = names.indexOf(name) === position ? name : `${name} (${position})`;
      const row = rows.get(key) ?? { key, name, position, probes: series.map(() => -1) };
      row.probes[run] =
        run === 0 || !set
          ? position
          : findProbe(one, Math.max(0, timeline.looks[run][index]), name, row.position);
      rows.set(key, row);
    });
  });
  return [...rows.values()];
}

/** The look of a run at the position, or at the pinned one. @param {Scene} scene @param {number} run @param {number} [at] */
export function lookAt(scene, run, at) {
  return scene.timeline.looks[run][at ?? scene.index];
}

/** The tiles of a probe, run by run and target by target. @param {Scene} scene @param {Row} row @returns {Tile[]} */
export function tilesOf(scene, row) {
  const tiles = [];
  for (const run of scene.series.keys()) {
    for (const title of scene.targets) {
      const tile = tileAt(scene, row, run, title, scene.index);
      if (!tile) continue;
      const { compare } = scene.state;
      const other = tileAt(scene, row, run, title, scene.pinned);
      if (compare === "two" && other) tiles.push(other, tile);
      else if (compare === "difference") tiles.push({ ...tile, other: lookAt(scene, run, scene.pinned) });
      else tiles.push(tile);
    }
  }
  return tiles;
}

/**
 * @param {Scene} scene @param {Row} row @param {number} run @param {string} title @param {number} at
 * @returns {Tile | null}
 */
export function tileAt(scene, row, run, title, at) {
  const series = scene.series[run];
  const target = series.targets.indexOf(title);
  if (target < 0) return null;
  const look = lookAt(scene, run, at);
  return {
    run,
    series,
    layer: layerOf(series, scene.state),
    look,
    isStale: scene.timeline.stale[run][at] === 1,
    target,
    probe: row.probes[run],
    together: scene.together,
  };
}

/** @param {Scene} scene @param {Row} row */
function passes(scene, row) {
  const { filter, filterClass, filterName } = scene.state;
  if (filter === "wrong" && !isWrong(scene, row)) return false;
  if (filter === "alert" && !hasAlert(scene, row)) return false;
  if (filterClass && classOf(scene, row) !== filterClass) return false;
  const text = `${row.name} ${labelText(scene, row)}`.toLowerCase();
  return text.includes(filterName.toLowerCase());
}

/** @param {Scene} scene @param {Row} row */
export function labelText(scene, row) {
  const run = row.probes.findIndex((probe) => probe >= 0);
  const set = probeSetAt(scene.series[run], Math.max(0, lookAt(scene, run)));
  return set?.labelTexts[row.probes[run]] ?? "";
}

/** The class of a probe in words; empty where it has none. @param {Scene} scene @param {Row} row */
export function classOf(scene, row) {
  return labelText(scene, row).replace(/^labels?: /, "");
}

/** @param {Scene} scene @param {Row} row */
function isWrong(scene, row) {
  return scene.series.some((series, run) => {
    const look = lookAt(scene, run);
    return look >= 0 && row.probes[run] >= 0 && isRight(series, look, row.probes[run]) === false;
  });
}

/** @param {Scene} scene @param {Row} row */
function hasAlert(scene, row) {
  return tilesOf(scene, row).some(({ series, layer, look, target, probe }) => {
    if (!layer || look < 0 || probe < 0) return false;
    const alert = openAlert(series, layer, look);
    const isConcerned = alert && (alert.concernsAll || alert.probes.includes(probe));
    return isConcerned || layer.states[place(series, look, target, probe)] !== OK;
  });
}

/** How far the maps of a probe have moved: in the last look, or over all looks. @param {Scene} scene @param {Row} row @param {boolean} overall */
function change(scene, row, overall) {
  let most = 0;
  for (const { series, layer, look, target, probe } of tilesOf(scene, row)) {
    if (!layer || look < 1 || probe < 0) continue;
    const before = overall ? firstDrawn(series, layer, target, probe) : look - 1;
    const moved = drift(series, layer, target, probe, look, before);
    if (moved > most) most = moved;
  }
  return most;
}

/** @param {Series} series @param {Layer} layer @param {number} target @param {number} probe */
function firstDrawn(series, layer, target, probe) {
  let look = 0;
  while (look < series.epochs.length - 1 && !(layer.peaks[place(series, look, target, probe)] > 0)) look++;
  return look;
}

/** @param {Row[]} rows @param {Scene} scene */
function sorted(rows, scene) {
  const { sort } = scene.state;
  if (sort === "order") return rows;
  const byText = (/** @type {(row: Row) => string} */ text) =>
    rows.toSorted((a, b) => text(a).localeCompare(text(b), undefined, { numeric: true }));
  if (sort === "name") return byText((row) => row.name);
  if (sort === "class") return byText((row) => classOf(scene, row));
  const amount = new Map(
    rows.map((row) => [
      row,
      sort === "wrong" ? Number(isWrong(scene, row)) : change(scene, row, sort === "changed"),
    ]),
  );
  return rows.toSorted((a, b) => (amount.get(b) ?? 0) - (amount.get(a) ?? 0));
}

/** What a run predicts for a probe, and whether that is right. @param {Scene} scene @param {Row} row @param {number} run */
export function predictionOf(scene, row, run) {
  const look = lookAt(scene, run);
  const probe = row.probes[run];
  if (look < 0 || probe < 0) return { text: "", isRight: null };
  return {
    text: predicted(scene.series[run], look, probe),
    isRight: isRight(scene.series[run], look, probe),
  };
}
