// Which runs, layer and targets are shown.

/** @import {App} from "../app.js" */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { COLOURS } from "./colours.js";
import { select } from "./controls.js";

const MOST_RUNS = 4;

/** @param {App} app */
export function header(app) {
  return html`<div class="bar">
    <h1>Grad-CAM</h1>
    <div class="group" role="group" aria-label="Runs">${chips(app)} ${adder(app)}</div>
    ${seriesSelect(app)} ${layerSelect(app)} ${targetBoxes(app)}
    <span class="spacer"></span>
    ${app.source.isLive ? nothing : themeButton(app)}
    <button type="button" aria-label="Keys" title="Keys (?)" @click=${() => app.set({ dialog: "keys" })}>
      ?
    </button>
  </div>`;
}

/** A report follows the system until it is told otherwise; the tab follows TensorBoard. @param {App} app */
function themeButton(app) {
  const { classList } = document.body;
  const isDark = classList.contains("themed")
    ? classList.contains("dark")
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const change = () => {
    classList.add("themed");
    classList.toggle("dark", !isDark);
    app.requestRender();
  };
  return html`<button type="button" @click=${change}>${isDark ? "Light" : "Dark"}</button>`;
}

/** @param {App} app */
function chips(app) {
  return app.state.runs.map((name, i) => {
    const rest = app.state.runs.filter((other) => other !== name);
    return html`<span class="chip" style="--colour: ${COLOURS[i]}">
      <span class="dot"></span><span class="run-name" title=${name}>${name}</span>
      ${
        rest.length
          ? html`<button
              type="button"
              class="bare"
              aria-label="Take ${name} away"
              @click=${() => app.set({ runs: rest })}
            >
              ×
            </button>`
          : nothing
      }
    </span>`;
  });
}

/** @param {App} app */
function adder(app) {
  const { runs } = app.state;
  const others = app.infos.map((info) => info.name).filter((name) => !runs.includes(name));
  if (!others.length) return nothing;
  const isFull = runs.length >= MOST_RUNS;
  const add = (/** @type {Event} */ event) => {
    const menu = /** @type {HTMLSelectElement} */ (event.target);
    if (menu.value) app.set({ runs: isFull ? [...runs.slice(0, -1), menu.value] : [...runs, menu.value] });
    menu.value = "";
  };
  return html`<select class="adder" aria-label="Add a run" @change=${add}>
    <option value="">${isFull ? "Replace the last run" : "Add a run"}</option>
    ${others.map((name) => html`<option value=${name}>${name}</option>`)}
  </select>`;
}

/** @param {App} app */
function seriesSelect(app) {
  const names = [...new Set(app.runs.flatMap((run) => run.series.map((one) => one.name)))];
  if (names.length < 2) return nothing;
  const current = names.includes(app.state.series) ? app.state.series : names[0];
  return select("Stage", current, Object.fromEntries(names.map((name) => [name, name])), (series) =>
    app.set({ series, layer: "", position: "" }),
  );
}

/** @param {App} app */
function layerSelect(app) {
  const layers = new Map(app.scene?.series.flatMap((one) => one.layers.map((layer) => [layer.name, layer])));
  const names = Object.fromEntries(
    [...layers].map(([name, layer]) => [name, `${name} (${layer.shape.join(" × ")})`]),
  );
  return select("Layer", app.state.layer, names, (layer) => app.set({ layer }));
}

/** @param {App} app */
function targetBoxes(app) {
  const titles = [...new Set(app.scene?.series.flatMap((one) => one.targets))];
  if (titles.length < 2 || !app.scene) return nothing;
  const shown = app.scene.targets;
  const toggle = (/** @type {string} */ title) => {
    const next = shown.includes(title) ? shown.filter((other) => other !== title) : [...shown, title];
    app.set({ targets: next.length === titles.length ? [] : next });
  };
  return html`<fieldset class="segments">
    <legend>Targets</legend>
    ${titles.map(
      (title) =>
        html`<label
          ><input type="checkbox" .checked=${shown.includes(title)} @change=${() => toggle(title)} /><span
            >${title}</span
          ></label
        >`,
    )}
  </fieldset>`;
}
