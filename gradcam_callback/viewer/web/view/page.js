// The whole page.

/** @import {App} from "../app.js" */
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { alertsTable } from "./alerts_table.js";
import { dialogs } from "./dialogs.js";
import { header } from "./header.js";
import { probeRows } from "./probe_rows.js";
import { timelineBar } from "./timeline_bar.js";
import { toolbar } from "./toolbar.js";

/** @param {App} app */
export function page(app) {
  if (!app.isStarted) return html`<main class="empty"><p role="status">Loading the recordings…</p></main>`;
  if (!app.scene) return empty(app);
  return html`
    <header>${header(app)} ${toolbar(app, app.scene)}</header>
    <main>${warnings(app)} ${probeRows(app, app.scene)} ${alertsTable(app, app.scene)}</main>
    ${timelineBar(app, app.scene)} ${dialogs(app, app.scene)}
  `;
}

/** @param {App} app */
function empty(app) {
  const problems = [...app.notes, ...problemsOf(app)];
  return html`<main class="empty">
    <h1>Grad-CAM</h1>
    <p>No run has a recording yet. To get one:</p>
    <ol>
      <li>Attach the callback: <code>Trainer(callbacks=[gradcam_callback.GradCAMCallback()])</code>.</li>
      <li>Train with a TensorBoardLogger whose folder TensorBoard watches.</li>
      <li>Wait for the first validation. This page looks again by itself.</li>
    </ol>
    ${problems.map((text) => html`<p class="warning" role="alert">${text}</p>`)}
  </main>`;
}

/** @param {App} app */
function problemsOf(app) {
  return app.state.runs.flatMap((name) => {
    const { error, run } = app.loaded.get(name) ?? { error: "", run: null };
    const isEmpty = run && !run.series.some((series) => series.epochs.length);
    // Nothing could be explained, and why not is all that there is.
    const alerts = isEmpty ? run.series.flatMap((series) => series.alerts.map((alert) => alert.message)) : [];
    return [error, ...new Set(alerts)].filter(Boolean).map((text) => `${name}: ${text}`);
  });
}

/** @param {App} app */
function warnings(app) {
  const texts = [
    ...app.notes,
    ...problemsOf(app),
    ...app.runs.flatMap((run) => run.notes),
    ...differences(app),
  ];
  if (!texts.length) return nothing;
  return html`<ul class="warnings" aria-label="Warnings">
    ${texts.map((text) => html`<li>${text}</li>`)}
  </ul>`;
}

/** @param {App} app */
function differences({ scene }) {
  if (!scene || scene.series.length < 2) return [];
  const sets = scene.series.map((series) => series.probeSets.map((set) => set.fingerprint).join());
  const isSame = new Set(sets).size === 1;
  return isSame
    ? []
    : ["The probes of these runs differ. They are paired by their names; the images may not be the same."];
}
