// Values of a map at the pixels of its image: linear between the middles of the cells, as the callback enlarges maps.

/** @import {Layer, Series} from "./types.js" */
import { cellsOf, levelsAt, place } from "./looks.js";

/**
 * A map of two axes: of a signal one row, of a volume one slice.
 * @typedef {object} Plane
 * @property {ArrayLike<number>} values `(h, w)`, at least 0 (of a difference, of any sign)
 * @property {number} h
 * @property {number} w
 * @property {number} top where the image begins, in cells
 * @property {number} left
 * @property {number} bottom where it ends
 * @property {number} right
 */

/**
 * The map of a look in its own units.
 * @param {Series} series @param {Layer} layer @param {number} look @param {number} target @param {number} probe
 * @param {number} slice 0..1, the depth in a volume
 * @returns {Plane}
 */
export function planeOf(series, layer, look, target, probe, slice) {
  const [h, w] = layer.shape.length === 1 ? [1, layer.shape[0]] : layer.shape.slice(-2);
  const peak = layer.peaks[place(series, look, target, probe)];
  const levels = levelsAt(series, layer, look, target, probe);
  const values = new Float32Array(h * w);
  if (layer.shape.length === 3) {
    const depth = layer.shape[0];
    const at = Math.max(0, Math.min(depth - 1, slice * depth - 0.5));
    const first = Math.floor(at) * h * w;
    const second = Math.min(depth - 1, Math.floor(at) + 1) * h * w;
    const share = at - Math.floor(at);
    for (let i = 0; i < values.length; i++) {
      values[i] = ((levels[first + i] * (1 - share) + levels[second + i] * share) * peak) / 255;
    }
  } else {
    for (let i = 0; i < values.length; i++) values[i] = (levels[i] * peak) / 255;
  }
  return { values, h, w, ...extentOf(series, layer, look, probe, h, w) };
}

/**
 * @param {Series} series @param {Layer} layer @param {number} look @param {number} probe
 * @param {number} h @param {number} w
 */
function extentOf(series, layer, look, probe, h, w) {
  const start = (look * series.probes + probe) * 4;
  const [top, left, bottom, right] = layer.extents?.subarray(start, start + 4) ?? [NaN];
  return Number.isNaN(top) ? { top: 0, left: 0, bottom: h, right: w } : { top, left, bottom, right };
}

/** @param {Plane} plane @param {Plane} other of the same size @returns {Plane} */
export function minus(plane, other) {
  const values = Float32Array.from(plane.values, (value, i) => value - other.values[i]);
  return { ...plane, values };
}

/**
 * The values of a plane on a grid of pixels.
 * @param {Plane} plane @param {number} width @param {number} height
 * @param {(value: number, pixel: number) => void} put
 */
export function sample(plane, width, height, put) {
  const columns = weights(plane.left, plane.right, width, plane.w);
  const rows = weights(plane.top, plane.bottom, height, plane.h);
  const { values, w } = plane;
  let pixel = 0;
  for (let y = 0; y < height; y++) {
    const upper = rows.first[y] * w;
    const lower = rows.second[y] * w;
    const down = rows.share[y];
    for (let x = 0; x < width; x++) {
      const a = columns.first[x];
      const b = columns.second[x];
      const along = columns.share[x];
      const above = values[upper + a] + (values[upper + b] - values[upper + a]) * along;
      const below = values[lower + a] + (values[lower + b] - values[lower + a]) * along;
      put(above + (below - above) * down, pixel++);
    }
  }
}

/**
 * Between which cells each pixel lies.
 * @typedef {object} Weights
 * @property {Int32Array} first
 * @property {Int32Array} second
 * @property {Float32Array} share of the second one
 */

/** @type {Map<string, Weights>} */
const knownWeights = new Map();
const MOST_WEIGHTS = 64; // a page has a few sizes of tiles; padded images have many

/** @param {number} from @param {number} to @param {number} pixels @param {number} cells @returns {Weights} */
function weights(from, to, pixels, cells) {
  const key = `${from} ${to} ${pixels} ${cells}`;
  let found = knownWeights.get(key);
  if (!found) {
    if (knownWeights.size >= MOST_WEIGHTS) knownWeights.clear();
    found = computeWeights(from, to, pixels, cells);
    knownWeights.set(key, found);
  }
  return found;
}

/** @param {number} from @param {number} to @param {number} pixels @param {number} cells @returns {Weights} */
function computeWeights(from, to, pixels, cells) {
  const first = new Int32Array(pixels);
  const second = new Int32Array(pixels);
  const share = new Float32Array(pixels);
  for (let i = 0; i < pixels; i++) {
    const at = from + ((i + 0.5) / pixels) * (to - from) - 0.5;
    const inside = Math.max(0, Math.min(cells - 1, at));
    first[i] = Math.floor(inside);
    second[i] = Math.min(cells - 1, first[i] + 1);
    share[i] = inside - first[i];
  }
  return { first, second, share };
}

/**
 * The cell under a point, and its value.
 * @param {Plane} plane @param {number} x 0..1 @param {number} y 0..1
 */
export function cellAt(plane, x, y) {
  const clamp = (/** @type {number} */ at, /** @type {number} */ cells) =>
    Math.max(0, Math.min(cells - 1, Math.floor(at)));
  const row = clamp(plane.top + y * (plane.bottom - plane.top), plane.h);
  const column = clamp(plane.left + x * (plane.right - plane.left), plane.w);
  return { row, column, value: plane.values[row * plane.w + column] };
}

/** @param {Layer} layer */
export function isVolume(layer) {
  return layer.shape.length === 3 && cellsOf(layer) > 0;
}
