// Draws tiles: the image, and the map over it. Values are interpolated first and coloured then.

/** @import {Shown, State, Tile} from "./types.js" */
/** @import {Plane} from "./sampling.js" */
import { DIVERGING, tableOf } from "./colormaps.js";
import { highestPeak, missingReason, place, probeSetAt } from "./looks.js";
import { bitmapOf } from "./pictures.js";
import { minus, planeOf, sample } from "./sampling.js";

const FINEST = 128; // pixels of a coloured map; larger tiles enlarge it
const PIXEL_BY_PIXEL = 64; // images up to this size are enlarged without blur

/** The map that a tile shows; null where there is none. @param {Tile} tile @param {State} state @returns {Plane | null} */
export function planeOfTile(tile, state) {
  const { series, layer, look, target, probe, other } = tile;
  if (!layer || look < 0 || probe < 0 || reasonOf(tile)) return null;
  const plane = planeOf(series, layer, look, target, probe, state.slice);
  return other === undefined
    ? plane
    : minus(plane, planeOf(series, layer, other, target, probe, state.slice));
}

/** Why a tile shows no map, in words; empty where it shows one. @param {Tile} tile */
export function reasonOf(tile) {
  const { series, layer, look, target, probe, other } = tile;
  if (!layer) return "this run has no such layer";
  if (probe < 0) return "this run has no such probe";
  if (look < 0 || other === -1) return "no look yet";
  const reason = missingReason(series, layer, look, target, probe);
  return reason || (other === undefined ? "" : missingReason(series, layer, other, target, probe));
}

/** What the end of the colormap stands for. @param {Tile} tile @param {State} state @param {Plane | null} plane */
export function peakOf(tile, state, plane) {
  const { series, layer, target, probe } = tile;
  if (!layer || !plane) return NaN;
  if (tile.other !== undefined) {
    let highest = 0;
    for (let i = 0; i < plane.values.length; i++) highest = Math.max(highest, Math.abs(plane.values[i]));
    return highest;
  }
  if (state.scale === "each") return layer.peaks[place(series, tile.look, target, probe)];
  if (state.scale === "probe") return cachedPeak(tile, probe);
  return Math.max(...tile.together.map((one) => cachedPeak(one)));
}

/** @type {WeakMap<object, Map<string, number>>} */
const peaks = new WeakMap();

/** @param {Shown} shown @param {number} [probe] */
function cachedPeak({ series, layer, target }, probe) {
  if (!layer) return 0;
  const known = peaks.get(layer) ?? new Map();
  peaks.set(layer, known);
  const key = `${target}/${probe}`;
  if (!known.has(key)) known.set(key, highestPeak(series, layer, target, probe));
  return known.get(key);
}

/** The picture of a tile's probe, and its size. @param {Tile} tile */
export function pictureOf(tile) {
  const set = probeSetAt(tile.series, Math.max(0, tile.look));
  return set?.images[tile.probe] ?? null;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Tile} tile
 * @param {State} state
 * @param {() => void} whenReady
 */
export function paintTile(canvas, tile, state, whenReady) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const { width, height } = canvas;
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  const isDifference = tile.other !== undefined;
  if (state.view !== "map" || reasonOf(tile)) drawImage(context, tile, state, whenReady);
  if (reasonOf(tile)) return hatch(context);
  if (state.view === "input" && !isDifference) return;
  const plane = planeOfTile(tile, state);
  if (!plane) return;
  const map = colour(plane, peakOf(tile, state, plane), state, isDifference, width, height);
  context.imageSmoothingEnabled = state.isSmooth;
  context.globalAlpha = state.view === "map" ? 1 : state.opacity;
  drawPart(context, map, plane, state.isSmooth);
  context.globalAlpha = 1;
  drawBox(context, tile);
}

/** @param {CanvasRenderingContext2D} context @param {Tile} tile @param {State} state @param {() => void} whenReady */
function drawImage(context, tile, state, whenReady) {
  const image = pictureOf(tile);
  const bitmap = image && bitmapOf(image, whenReady);
  if (!image || !bitmap) return;
  const { width, height } = context.canvas;
  const rows = bitmap.height / image.slices;
  const slice = Math.min(image.slices - 1, Math.floor(state.slice * image.slices));
  const isSmall = Math.max(bitmap.width, rows) <= PIXEL_BY_PIXEL;
  context.imageSmoothingEnabled = !(isSmall && width > bitmap.width);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, slice * rows, bitmap.width, rows, 0, 0, width, height);
}

/**
 * A canvas to colour maps in, with its pixels; one for each size of maps, so that a step of the slider takes no memory.
 * @typedef {object} Scratch
 * @property {HTMLCanvasElement} canvas
 * @property {CanvasRenderingContext2D} context
 * @property {ImageData} data
 * @property {Uint32Array} pixels
 */

/** @type {Map<string, Scratch>} */
const scratches = new Map();
const MOST_SCRATCHES = 8;

/** @param {number} width @param {number} height @returns {Scratch} */
function scratchOf(width, height) {
  const key = `${width} ${height}`;
  const known = scratches.get(key);
  if (known) return known;
  if (scratches.size >= MOST_SCRATCHES) scratches.clear();
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const options = { willReadFrequently: true };
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", options));
  const data = context.createImageData(width, height);
  const made = { canvas, context, data, pixels: new Uint32Array(data.data.buffer) };
  scratches.set(key, made);
  return made;
}

/**
 * A canvas with the colours of a map: of its cells, or of its pixels.
 * @param {Plane} plane @param {number} peak @param {State} state @param {boolean} isDifference
 * @param {number} width @param {number} height
 */
function colour(plane, peak, state, isDifference, width, height) {
  const reduction = Math.min(1, FINEST / Math.max(width, height));
  const columns = state.isSmooth ? Math.max(1, Math.round(width * reduction)) : plane.w;
  const rows = state.isSmooth ? Math.max(1, Math.round(height * reduction)) : plane.h;
  const { canvas, context, data, pixels } = scratchOf(columns, rows);
  const table = tableOf(isDifference ? DIVERGING : state.colormap);
  const [factor, middle] = isDifference ? [127.5 / (peak || 1), 127.5] : [255 / (peak || 1), 0];
  const put = (/** @type {number} */ value, /** @type {number} */ pixel) => {
    const level = Math.round(value * factor + middle);
    pixels[pixel] = table[level < 0 ? 0 : level > 255 ? 255 : level];
  };
  if (state.isSmooth) sample(plane, columns, rows, put);
  else for (let i = 0; i < plane.values.length; i++) put(plane.values[i], i);
  context.putImageData(data, 0, 0);
  return canvas;
}

/** @param {CanvasRenderingContext2D} context @param {HTMLCanvasElement} map @param {Plane} plane @param {boolean} isSmooth */
function drawPart(context, map, plane, isSmooth) {
  const { width, height } = context.canvas;
  if (isSmooth) return context.drawImage(map, 0, 0, width, height);
  const { left, top, right, bottom } = plane;
  context.drawImage(map, left, top, right - left, bottom - top, 0, 0, width, height);
}

/** The box that was explained. @param {CanvasRenderingContext2D} context @param {Tile} tile */
function drawBox(context, tile) {
  const image = pictureOf(tile);
  if (!tile.series.boxes || !image) return;
  const start = place(tile.series, tile.look, tile.target, tile.probe) * 4;
  const [left, top, right, bottom] = tile.series.boxes.subarray(start, start + 4);
  if (Number.isNaN(left)) return;
  const across = context.canvas.width / image.width;
  const down = context.canvas.height / image.height;
  context.lineWidth = 2;
  context.strokeStyle = "#fff";
  context.strokeRect(left * across, top * down, (right - left) * across, (bottom - top) * down);
}

/** @param {CanvasRenderingContext2D} context */
function hatch(context) {
  const { width, height } = context.canvas;
  context.fillStyle = "rgb(226 229 233 / 0.86)";
  context.fillRect(0, 0, width, height);
  context.strokeStyle = "rgb(150 158 168)";
  context.lineWidth = 2;
  context.beginPath();
  for (let x = -height; x < width; x += 12) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
}
