// One tile: the map of a probe in a run for a target, over its image.

/** @import {App} from "../app.js" */
/** @import {Row, Scene} from "../rows.js" */
/** @import {State, Tile} from "../types.js" */
import { identityOf } from "../identity.js";
import { explained, place, remarkOn } from "../looks.js";
import { paintTile, peakOf, pictureOf, planeOfTile, reasonOf } from "../paint.js";
import { cellAt } from "../sampling.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { COLOURS } from "./colours.js";

const LONGEST = { small: 96, medium: 148, large: 256 }; // CSS pixels of a tile's longer side

/** @param {App} app @param {Scene} scene @param {Row} row @param {Tile} tile */
export function tileView(app, scene, row, tile) {
  const [width, height] = tileSize(tile, scene.state);
  const reason = reasonOf(tile);
  const remark = reason ? "" : remarkNote(tile);
  const stale = tile.isStale && !reason ? `epoch ${tile.series.epochs[tile.look]}, stale` : "";
  const open = () => app.set({ probe: row.key, dialog: "large" });
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    open();
  };
  return html`<figure class="tile-box">
    <button
      type="button"
      class="tile"
      aria-label=${describe(scene, row, tile)}
      style="width: ${width}px; height: ${height}px"
      @click=${() => app.set({ probe: row.key })}
      @dblclick=${open}
      @keydown=${onKey}
      @focus=${() => readPeak(app, scene, row, tile)}
      @pointermove=${(/** @type {PointerEvent} */ event) => readPointer(app, scene, row, tile, event)}
      @pointerleave=${() => read(app, "")}
    >
      <canvas
        class="painted"
        .paintKey=${keyOf(tile, scene.state, width, height)}
        .paint=${(/** @type {HTMLCanvasElement} */ canvas) => paint(canvas, tile, scene.state, app, width, height)}
      ></canvas>
      ${reason ? html`<span class="reason">${reason}</span>` : nothing}
      ${stale ? html`<span class="stale">${stale}</span>` : nothing}
    </button>
    <figcaption style="max-width: ${Math.max(width, 96)}px">
      ${scene.series.length > 1 ? html`<span class="dot" style="--colour: ${COLOURS[tile.run]}"></span>` : nothing}
      ${subtitle(scene, tile)} ${remark ? html`<em>${remark}</em>` : nothing}
    </figcaption>
  </figure>`;
}

/** @param {Tile} tile @param {State} state @returns {[number, number]} */
export function tileSize(tile, state) {
  const image = pictureOf(tile) ?? { width: 64, height: 64 };
  if (state.size === "pixels") return [image.width, image.height];
  const longest =
    state.size === "fit" ? Math.max(160, Math.min(innerWidth, innerHeight) - 220) : LONGEST[state.size];
  const scale = longest / Math.max(image.width, image.height);
  return [Math.max(16, Math.round(image.width * scale)), Math.max(16, Math.round(image.height * scale))];
}

/**
 * @param {HTMLCanvasElement} canvas @param {Tile} tile @param {State} state @param {App} app
 * @param {number} width @param {number} height
 */
export function paint(canvas, tile, state, app, width, height) {
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  paintTile(canvas, tile, state, app.painter.pictureIsReady);
}

/** What a tile's pixels depend on. @param {Tile} tile @param {State} state @param {number} width @param {number} height */
export function keyOf(tile, state, width, height) {
  const { view, opacity, colormap, isSmooth, scale, slice, layer } = state;
  const shown = [
    tile.look,
    tile.other,
    tile.target,
    tile.probe,
    tile.run,
    identityOf(tile.series), // data that were read anew are another series
  ];
  if (scale === "all") {
    for (const one of tile.together) shown.push(identityOf(one.series), one.target);
  }
  return [...shown, layer, view, opacity, colormap, isSmooth, scale, slice, width, height].join();
}

/** @param {Tile} tile */
function remarkNote({ series, layer, look, target, probe }) {
  return layer ? remarkOn(series, layer, look, target, probe) : "";
}

/** @param {Scene} scene @param {Tile} tile */
function subtitle(scene, tile) {
  const { series, look, target, probe } = tile;
  const parts = [];
  if (series.targets.length > 1) parts.push(series.targets[target]);
  if (scene.state.compare === "two") parts.push(`epoch ${series.epochs[look] ?? "–"}`);
  const plane = tile.other === undefined ? null : planeOfTile(tile, scene.state);
  if (plane) parts.push(`± ${peakOf(tile, scene.state, plane).toPrecision(2)}`);
  if (look >= 0 && probe >= 0 && series.targets.length > 1)
    parts.push(explained(series, look, target, probe));
  return parts.filter(Boolean).join(" · ");
}

/** @param {Scene} scene @param {Row} row @param {Tile} tile */
function describe(scene, row, tile) {
  const { series, look, target, probe, run, other } = tile;
  const when = look < 0 ? "no look yet" : `epoch ${series.epochs[look]}`;
  const than = other === undefined || other < 0 ? "" : ` minus epoch ${series.epochs[other]}`;
  const what = look < 0 || probe < 0 ? "" : explained(series, look, target, probe);
  const state = reasonOf(tile) || remarkNote(tile);
  return [
    `${row.name}, run ${scene.names[run]}, target ${series.targets[target]}, ${when}${than}`,
    what,
    state,
  ]
    .filter(Boolean)
    .join(": ");
}

// Read-outs

/** @param {App} app @param {string} text */
function read(app, text) {
  app.readout = text;
  app.requestRender();
}

/** @param {App} app @param {Scene} scene @param {Row} row @param {Tile} tile @param {PointerEvent} event */
function readPointer(app, scene, row, tile, event) {
  const box = /** @type {HTMLElement} */ (event.currentTarget).getBoundingClientRect();
  readCell(
    app,
    scene,
    row,
    tile,
    (event.clientX - box.left) / box.width,
    (event.clientY - box.top) / box.height,
  );
}

/** @param {App} app @param {Scene} scene @param {Row} row @param {Tile} tile @param {number} x @param {number} y */
function readCell(app, scene, row, tile, x, y) {
  const plane = planeOfTile(tile, scene.state);
  if (!plane) return read(app, `${row.name}: ${reasonOf(tile)}`);
  const cell = cellAt(plane, x, y);
  read(app, `${row.name} · row ${cell.row}, column ${cell.column} · ${cell.value.toPrecision(3)}`);
}

/** @param {App} app @param {Scene} scene @param {Row} row @param {Tile} tile */
function readPeak(app, scene, row, tile) {
  const plane = planeOfTile(tile, scene.state);
  if (!plane) return read(app, `${row.name}: ${reasonOf(tile)}`);
  const peak = peakOf(tile, { ...scene.state, scale: "each" }, plane);
  const { series, layer, look, target, probe } = tile;
  const norm = layer ? layer.norms[place(series, look, target, probe)] : NaN;
  read(app, `${row.name} · peak ${peak.toPrecision(3)} · gradient norm ${norm.toPrecision(3)}`);
}
