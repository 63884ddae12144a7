// All looks at a probe in a row, one row a run and target. Only what can be seen of a strip is painted.

/** @import {App} from "../app.js" */
/** @import {Row, Scene} from "../rows.js" */
/** @import {Tile} from "../types.js" */
import { paintTile } from "../paint.js";
import { tileAt } from "../rows.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { COLOURS } from "./colours.js";
import { keyOf, tileSize } from "./tile_view.js";

const GAP = 2; // CSS pixels
const HEIGHTS = [96, 64, 44]; // where a probe has one strip, two, or more
const FEW = 16; // looks; of more, a single strip is as low as two are

/** @param {App} app @param {Scene} scene @param {Row} row */
export function filmStrips(app, scene, row) {
  const strips = scene.series.flatMap((_, run) =>
    scene.targets.flatMap((title) => {
      const tile = tileAt(scene, row, run, title, scene.index);
      return tile && tile.layer ? [{ run, title, tile }] : [];
    }),
  );
  const isLow = scene.timeline.positions.length > FEW;
  const height = HEIGHTS[Math.min(HEIGHTS.length, Math.max(strips.length, isLow ? 2 : 1)) - 1];
  return strips.map(({ run, title, tile }) => strip(app, scene, row, run, title, tile, height));
}

/**
 * @param {App} app @param {Scene} scene @param {Row} row @param {number} run @param {string} title
 * @param {Tile} tile @param {number} height
 */
function strip(app, scene, row, run, title, tile, height) {
  const [tileWidth, tileHeight] = tileSize(tile, { ...scene.state, size: "medium" });
  const width = Math.max(12, Math.round((height * tileWidth) / tileHeight));
  const pitch = width + GAP;
  const count = scene.timeline.positions.length;
  const looks = scene.timeline.looks[run];
  const several = scene.series.length > 1 || scene.targets.length > 1;
  const go = (/** @type {MouseEvent} */ event) => {
    const box = /** @type {HTMLElement} */ (event.currentTarget).getBoundingClientRect();
    app.set({ probe: row.key });
    app.go(Math.floor((event.clientX - box.left) / pitch));
  };
  const key = keyOf({ ...tile, look: looks[count - 1] }, scene.state, width, height);
  const paint = (/** @type {HTMLElement} */ element) =>
    paintStrip(element, app, scene, row, run, title, width, height, pitch);
  return html`${several ? html`<p class="strip-name">${nameOf(scene, run, title)}</p>` : nothing}
    <div
      class="strip painted"
      tabindex="0"
      role="img"
      aria-label="Film strip of ${row.name}, run ${scene.names[run]}, target ${title}: ${count} looks"
      style="--colour: ${COLOURS[run]}; height: ${height + 8}px"
      .paintKey=${`${key} ${scene.index} ${count}`}
      .paint=${paint}
      @scroll=${(/** @type {Event} */ event) => paint(/** @type {HTMLElement} */ (event.currentTarget))}
    >
      <div class="film" style="width: ${count * pitch}px; height: ${height}px" @click=${go}>
        <canvas></canvas>
        <i class="here" style="left: ${scene.index * pitch}px; width: ${width}px; height: ${height}px"></i>
      </div>
    </div>`;
}

/** @param {Scene} scene @param {number} run @param {string} title */
function nameOf(scene, run, title) {
  const parts = [scene.series.length > 1 ? scene.names[run] : "", scene.targets.length > 1 ? title : ""];
  return parts.filter(Boolean).join(" · ");
}

/** @type {WeakMap<HTMLElement, {key: string, index: number}>} */
const painted = new WeakMap();
const scratch = document.createElement("canvas");

/**
 * @param {HTMLElement} element @param {App} app @param {Scene} scene @param {Row} row @param {number} run
 * @param {string} title @param {number} width @param {number} height @param {number} pitch
 */
function paintStrip(element, app, scene, row, run, title, width, height, pitch) {
  follow(element, scene.index, pitch);
  const first = Math.max(0, Math.floor(element.scrollLeft / pitch) - 1);
  const count = scene.timeline.positions.length;
  const last = Math.min(count - 1, first + Math.ceil(element.clientWidth / pitch) + 2);
  const tile = tileAt(scene, row, run, title, last);
  if (!tile) return;
  // The current look is marked by an element of its own, so that a step of the slider paints nothing.
  const key = [
    keyOf(tile, scene.state, width, height),
    first,
    last,
    app.painter.pictures,
    devicePixelRatio,
  ].join();
  if (painted.get(element)?.key === key) return;
  painted.set(element, { key, index: scene.index });
  const canvas = /** @type {HTMLCanvasElement} */ (element.querySelector("canvas"));
  const scale = devicePixelRatio;
  canvas.style.left = `${first * pitch}px`;
  canvas.style.width = `${(last - first + 1) * pitch}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round((last - first + 1) * pitch * scale);
  canvas.height = Math.round(height * scale);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  scratch.width = Math.round(width * scale);
  scratch.height = canvas.height;
  for (let at = first; at <= last; at++) {
    const own = tileAt(scene, row, run, title, at);
    if (!own || own.look < 0 || own.isStale) continue;
    paintTile(scratch, own, scene.state, app.painter.pictureIsReady);
    context.drawImage(scratch, Math.round((at - first) * pitch * scale), 0);
  }
}

/** Scrolls a strip when the current look has left what can be seen of it. @param {HTMLElement} element @param {number} index @param {number} pitch */
function follow(element, index, pitch) {
  const before = painted.get(element)?.index;
  if (before === index) return;
  const left = index * pitch;
  const isVisible = left >= element.scrollLeft && left + pitch <= element.scrollLeft + element.clientWidth;
  if (!isVisible) element.scrollLeft = left - element.clientWidth / 3;
  const known = painted.get(element);
  if (known) known.index = index;
}
