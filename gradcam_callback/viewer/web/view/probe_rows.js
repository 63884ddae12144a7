// The probes: a row each with its film strip, or a grid of cards.

/** @import {App} from "../app.js" */
/** @import {Row, Scene} from "../rows.js" */
import { labelText, predictionOf, tilesOf } from "../rows.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { charts } from "./charts.js";
import { filmStrips } from "./film_strips.js";
import { COLOURS } from "./colours.js";
import { tileView } from "./tile_view.js";

/** @param {App} app @param {Scene} scene */
export function probeRows(app, scene) {
  const { rows, state } = scene;
  if (!rows.length) return html`<p class="nothing" role="status">No probe passes the filter.</p>`;
  const selected = selectedRow(scene);
  if (state.layout === "rows") {
    return html`<div class="rows">
      ${repeat(
        rows,
        (row) => row.key,
        (row) => probeRow(app, scene, row, row === selected),
      )}
    </div>`;
  }
  return html`${
      selected
        ? html`<section class="detail" aria-label="History of ${selected.name}">
            <h2>${selected.name} <small>${labelText(scene, selected)}</small></h2>
            ${filmStrips(app, scene, selected)} ${charts(app, scene, selected)}
          </section>`
        : nothing
    }
    <div class="grid">
      ${repeat(
        rows,
        (row) => row.key,
        (row) => card(app, scene, row, row === selected),
      )}
    </div>`;
}

/** The selected probe; the first one where none is. @param {Scene} scene */
export function selectedRow(scene) {
  return scene.rows.find((row) => row.key === scene.state.probe) ?? scene.rows[0];
}

/** @param {App} app @param {Scene} scene @param {Row} row @param {boolean} isSelected */
function probeRow(app, scene, row, isSelected) {
  return html`<section class="row ${isSelected ? "selected" : ""}" aria-label="Probe ${row.name}">
    ${caption(app, scene, row)}
    <div class="now">${tilesOf(scene, row).map((tile) => tileView(app, scene, row, tile))}</div>
    <div class="history">${filmStrips(app, scene, row)}</div>
    ${isSelected ? charts(app, scene, row) : nothing}
  </section>`;
}

/** @param {App} app @param {Scene} scene @param {Row} row @param {boolean} isSelected */
function card(app, scene, row, isSelected) {
  return html`<section class="card ${isSelected ? "selected" : ""}" aria-label="Probe ${row.name}">
    <div class="now">${tilesOf(scene, row).map((tile) => tileView(app, scene, row, tile))}</div>
    ${caption(app, scene, row)}
  </section>`;
}

/** @param {App} app @param {Scene} scene @param {Row} row */
function caption(app, scene, row) {
  return html`<div class="caption">
    <button type="button" class="bare name" @click=${() => app.set({ probe: row.key })}>${row.name}</button>
    <span class="label">${labelText(scene, row)}</span>
    ${scene.series.map((_, run) => prediction(scene, row, run))}
  </div>`;
}

/** @param {Scene} scene @param {Row} row @param {number} run */
function prediction(scene, row, run) {
  const { text, isRight } = predictionOf(scene, row, run);
  if (!text) return nothing;
  const [mark, kind, word] = {
    true: ["✓", "right", "right"],
    false: ["✗", "wrong", "wrong"],
    null: ["", "", ""],
  }[/** @type {"true" | "false" | "null"} */ (String(isRight))];
  const several = scene.series.length > 1;
  return html`<span class="prediction ${kind}" style="--colour: ${COLOURS[run]}">
    ${several ? html`<span class="dot"></span>` : nothing}
    ${mark ? html`<span role="img" aria-label=${word}>${mark}</span>` : nothing} <span>${text}</span>
  </span>`;
}
