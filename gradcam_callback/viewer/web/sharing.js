// Taking something along: a link, the view as PNG, a probe's history as an animated GIF.

/** @import {App} from "./app.js" */
/** @import {Row, Scene} from "./rows.js" */
/** @import {Tile} from "./types.js" */
import { paintTile, pictureOf, reasonOf } from "./paint.js";
import { decoded } from "./pictures.js";
import { labelText, predictionOf, tilesOf } from "./rows.js";
import { toAddress } from "./state.js";
import { applyPalette, GIFEncoder, quantize } from "./vendor/gifenc/gifenc.esm.js";
import { selectedRow } from "./view/probe_rows.js";
import { tileSize } from "./view/tile_view.js";
import { inWords } from "./view/timeline_bar.js";

const MARGIN = 16; // pixels of a picture
const LINE = 18;
const GIF_SIDE = 256;
const GIF_DELAY = 250; // milliseconds a look

/** @param {App} app */
export async function copyLink(app) {
  app.address.write(toAddress(app.state)); // it may lag behind
  const link = app.address.link();
  try {
    await navigator.clipboard.writeText(link);
    app.say("The link was copied.");
  } catch {
    app.say(link); // where the browser does not let a page copy
  }
}

/** @param {App} app @param {Scene} scene */
export async function savePNG(app, scene) {
  if (!scene.rows.length) return app.say("No probe passes the filter: there is nothing to save.");
  const asked = frozen(scene);
  const tiles = asked.rows.flatMap((row) => tilesOf(asked, row));
  await decoded(tiles.map(pictureOf), app.painter.pictureIsReady); // those of tiles that were never scrolled to, too
  composeView(app, asked).toBlob((blob) => {
    if (blob) save(app, blob, `grad-cam ${inWords(asked)}.png`);
    else app.say("The picture is too large for this browser. A filter leaves fewer probes.");
  });
}

/** A scene that stays as it is, whatever is chosen while pictures are waited for. @param {Scene} scene @returns {Scene} */
function frozen(scene) {
  return { ...scene, state: { ...scene.state } };
}

/**
 * All probes that are shown, with their captions.
 * @param {App} app @param {Scene} scene
 */
function composeView(app, scene) {
  const cells = scene.rows.map((row) => ({ row, tiles: tilesOf(scene, row) }));
  const [width, height] = tileSize(cells[0].tiles[0], { ...scene.state, size: "medium" });
  const cellWidth = Math.max(150, cells[0].tiles.length * (width + 4)) + MARGIN;
  const cellHeight = height + 3 * LINE + MARGIN;
  const columns = Math.max(1, Math.min(cells.length, Math.floor(1400 / cellWidth)));
  const canvas = document.createElement("canvas");
  canvas.width = MARGIN + columns * cellWidth;
  canvas.height = 3 * MARGIN + LINE + Math.ceil(cells.length / columns) * cellHeight;
  const context = paper(canvas);
  context.font = "bold 15px system-ui, sans-serif";
  const title = [scene.names.join(", "), scene.state.layer, inWords(scene)].join(" · ");
  context.fillText(title, MARGIN, MARGIN + 14, canvas.width - 2 * MARGIN);
  cells.forEach(({ row, tiles }, i) => {
    const x = MARGIN + (i % columns) * cellWidth;
    const y = 2 * MARGIN + LINE + Math.floor(i / columns) * cellHeight;
    tiles.forEach((tile, t) => drawTile(context, app, scene, tile, x + t * (width + 4), y, width, height));
    context.font = "13px system-ui, sans-serif";
    captionOf(scene, row).forEach((text, line) =>
      context.fillText(text, x, y + height + (line + 1) * LINE - 3, cellWidth - MARGIN),
    );
  });
  return canvas;
}

/** @param {HTMLCanvasElement} canvas */
function paper(canvas) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#1f2328";
  return context;
}

/** @param {Scene} scene @param {Row} row */
function captionOf(scene, row) {
  const predictions = scene.series.map((_, run) => predictionOf(scene, row, run));
  const told = predictions
    .filter(({ text }) => text)
    .map(({ text, isRight }) => `${isRight === false ? "✗ " : ""}${text}`);
  return [row.name, labelText(scene, row), told.join(" | ")];
}

/**
 * @param {CanvasRenderingContext2D} context @param {App} app @param {Scene} scene @param {Tile} tile
 * @param {number} x @param {number} y @param {number} width @param {number} height
 */
function drawTile(context, app, scene, tile, x, y, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  paintTile(canvas, tile, scene.state, app.painter.pictureIsReady);
  context.drawImage(canvas, x, y);
  const reason = reasonOf(tile);
  if (!reason) return;
  context.font = "11px system-ui, sans-serif";
  context.fillText(reason, x + 4, y + height / 2, width - 8);
}

/** @param {App} app @param {Scene} scene */
export async function saveGIF(app, scene) {
  const row = selectedRow(scene);
  if (!row) return app.say("No probe passes the filter: there is nothing to save.");
  const asked = frozen(scene);
  const looks = [...asked.timeline.positions.keys()].map((index) => ({ ...asked, index }));
  await decoded(looks.flatMap((then) => tilesOf(then, row)).map(pictureOf), app.painter.pictureIsReady);
  const blob = new Blob([historyOf(app, asked, row)], { type: "image/gif" });
  save(app, blob, `grad-cam ${row.name}.gif`);
}

/**
 * One frame a look: the tiles of a probe, with the epoch beneath.
 * @param {App} app @param {Scene} scene @param {Row} row
 * @returns {Uint8Array<ArrayBuffer>}
 */
function historyOf(app, scene, row) {
  const encoder = GIFEncoder();
  for (const index of scene.timeline.positions.keys()) {
    const then = { ...scene, index };
    const tiles = tilesOf(then, row);
    const [w, h] = tileSize(tiles[0], { ...scene.state, size: "large" });
    const scale = Math.min(1, GIF_SIDE / Math.max(w, h));
    const [width, height] = [Math.round(w * scale), Math.round(h * scale)];
    const canvas = document.createElement("canvas");
    canvas.width = tiles.length * width;
    canvas.height = height + LINE;
    const context = paper(canvas);
    tiles.forEach((tile, t) => drawTile(context, app, then, tile, t * width, 0, width, height));
    context.font = "12px system-ui, sans-serif";
    context.fillText(inWords(then), 3, canvas.height - 5, canvas.width - 6);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const palette = quantize(data, 256);
    encoder.writeFrame(applyPalette(data, palette), canvas.width, canvas.height, {
      palette,
      delay: GIF_DELAY,
    });
  }
  encoder.finish();
  return new Uint8Array(encoder.bytes());
}

/** @param {App} app @param {Blob} blob @param {string} name */
function save(app, blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
  app.say(`Saved: ${name}`);
}
