// How maps are shown, compared, sorted and shared.

/** @import {App} from "../app.js" */
/** @import {Scene} from "../rows.js" */
import { DIVERGING, gradientOf, NAMES } from "../colormaps.js";
import { classOf } from "../rows.js";
import { isVolume } from "../sampling.js";
import { copyLink, saveGIF, savePNG } from "../sharing.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { segments, select, share } from "./controls.js";

const MARGIN = 20; // CSS pixels between a menu and the edge of the page

/** @param {App} app @param {Scene} scene */
export function toolbar(app, scene) {
  const { state } = app;
  const views = { overlay: "Overlay", map: "Map", input: "Input" };
  const layouts = { rows: "Film strips", grid: "Grid" };
  return html`<div class="toolbar" role="toolbar" aria-label="View">
    ${segments("Layout", state.layout, layouts, (layout) => app.set({ layout }))}
    ${segments("View", state.view, views, (view) => app.set({ view }))}
    ${share("Opacity", state.opacity, (opacity) => app.set({ opacity }))}
    ${select("Colours", state.colormap, NAMES, (colormap) => app.set({ colormap }))} ${colourBar(app)}
    ${compare(app, scene)} ${order(app, scene)} ${more(app, scene)} ${sharing(app, scene)}
    <span class="message" role="status">${app.message}</span>
  </div>`;
}

/** @param {App} app */
function colourBar({ state }) {
  const isDifference = state.compare === "difference";
  const gradient = gradientOf(isDifference ? DIVERGING : state.colormap);
  const end = { each: "each map's peak", probe: "the probe's peak", all: "the highest peak" }[state.scale];
  const ends = isDifference ? ["less", "more"] : ["0", end];
  return html`<div class="colour-bar" aria-label="Colour scale from ${ends[0]} to ${ends[1]}" role="img">
    <span>${ends[0]}</span><i style="background: ${gradient}"></i><span>${ends[1]}</span>
  </div>`;
}

/** @param {App} app @param {Scene} scene */
function compare(app, scene) {
  const { state } = app;
  const options = { off: "One epoch", two: "Two epochs", difference: "Difference" };
  const choose = (/** @type {"off" | "two" | "difference"} */ chosen) =>
    app.set({ compare: chosen, pinned: state.pinned || scene.timeline.positions[0] });
  return html`${select("Compare", state.compare, options, choose)}
  ${
    state.compare === "off"
      ? nothing
      : html`<button type="button" @click=${() => app.set({ pinned: state.position })}>
          With ${state.align} ${scene.timeline.positions[scene.pinned]} (set to this one)
        </button>`
  }`;
}

/** Moves an opened menu to where all of it can be seen. @param {Event} event */
function keepInside(event) {
  const menu = /** @type {HTMLDetailsElement} */ (event.currentTarget);
  const panel = /** @type {HTMLElement} */ (menu.querySelector(".panel"));
  const room = document.documentElement.clientWidth - MARGIN - panel.offsetWidth;
  panel.style.left = `${Math.min(0, room - menu.getBoundingClientRect().left)}px`;
}

/** @param {App} app @param {Scene} scene */
function order(app, scene) {
  const { state } = app;
  const orders = {
    order: "In order",
    wrong: "Wrong first",
    drift: "Changed most in this look",
    changed: "Changed most over the run",
    class: "By class",
    name: "By name",
  };
  const filters = { all: "All probes", alert: "With an alert", wrong: "Predicted wrong" };
  const classes = [...new Set(scene.all.map((row) => classOf(scene, row)))].filter(Boolean).sort();
  const byName = Object.fromEntries(classes.map((one) => [one, one]));
  const typed = (/** @type {Event} */ event) =>
    app.set({ filterName: /** @type {HTMLInputElement} */ (event.target).value });
  const isActive = state.sort !== "order" || state.filter !== "all" || state.filterClass || state.filterName;
  return html`<details class="menu" name="menus" @toggle=${keepInside}>
    <summary>Sort and filter${isActive ? " (in use)" : ""}</summary>
    <div class="panel">
      ${select("Sort", state.sort, orders, (sort) => app.set({ sort }))}
      ${select("Show", state.filter, filters, (filter) => app.set({ filter }))}
      ${select("Class", state.filterClass, { "": "All", ...byName }, (filterClass) => app.set({ filterClass }))}
      <label class="field"
        ><span>Find</span><input type="search" .value=${state.filterName} @input=${typed}
      /></label>
    </div>
  </details>`;
}

/** @param {App} app @param {Scene} scene */
function more(app, scene) {
  const { state } = app;
  const sizes = { small: "Small", medium: "Medium", large: "Large", pixels: "1:1", fit: "Fit" };
  const scales = { each: "Each map", probe: "A probe's epochs", all: "Everything" };
  const hasVolumes = scene.series.some((one) => one.layers.some(isVolume));
  return html`<details class="menu" name="menus" @toggle=${keepInside}>
    <summary>View options</summary>
    <div class="panel">
      ${segments("Scale", state.scale, scales, (scale) => app.set({ scale }))}
      ${segments("Map", state.isSmooth ? "smooth" : "cells", { smooth: "Smooth", cells: "Cells" }, (kind) =>
        app.set({ isSmooth: kind === "smooth" }),
      )}
      ${segments("Size", state.size, sizes, (size) => app.set({ size }))}
      ${segments("Align by", state.align, { epoch: "Epoch", step: "Step" }, (align) => app.set({ align }))}
      ${hasVolumes ? share("Depth", state.slice, (slice) => app.set({ slice })) : nothing}
    </div>
  </details>`;
}

/** @param {App} app @param {Scene} scene */
function sharing(app, scene) {
  return html`<details class="menu" name="menus" @toggle=${keepInside}>
    <summary>Share</summary>
    <div class="panel">
      <button type="button" @click=${() => copyLink(app)}>Copy link</button>
      <button type="button" @click=${() => savePNG(app, scene)}>Save view as PNG</button>
      <button type="button" @click=${() => saveGIF(app, scene)}>Save probe's history as GIF</button>
    </div>
  </details>`;
}
