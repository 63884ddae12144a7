// The alerts: each with its life, its place in the code, and what to do.

/** @import {App} from "../app.js" */
/** @import {Scene} from "../rows.js" */
/** @import {AlertRecord, Place} from "../types.js" */
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/**
 * One finding from its beginning to its end.
 * @typedef {object} Life
 * @property {number} run
 * @property {AlertRecord[]} moments the first is "raised", mostly
 */

/** @param {Scene} scene @returns {Life[]} */
export function livesOf(scene) {
  return scene.series.flatMap((series, run) => {
    /** @type {Map<string, Life>} */
    const open = new Map();
    const lives = [];
    for (const alert of series.alerts) {
      let life = open.get(alert.subject);
      if (!life || alert.status === "raised") {
        life = { run, moments: [] };
        lives.push(life);
        open.set(alert.subject, life);
      }
      life.moments.push(alert);
      if (alert.status === "cleared") open.delete(alert.subject);
    }
    return lives;
  });
}

/** @param {App} app @param {Scene} scene */
export function alertsTable(app, scene) {
  const lives = livesOf(scene);
  if (!lives.length)
    return html`<section class="alerts">
      <h2>Alerts</h2>
      <p class="nothing">There are none.</p>
    </section>`;
  const several = scene.series.length > 1;
  return html`<section class="alerts" aria-labelledby="alerts-title">
    <h2 id="alerts-title">Alerts <small>${lives.length}</small></h2>
    <div class="scroller" tabindex="0" role="region" aria-label="Table of alerts">
      <table>
        <thead>
          <tr>
            ${several ? html`<th scope="col">Run</th>` : nothing}
            <th scope="col">Cause</th>
            <th scope="col">Layer</th>
            <th scope="col">Probes</th>
            <th scope="col">Raised</th>
            <th scope="col">Changed</th>
            <th scope="col">Cleared</th>
            <th scope="col">Place</th>
            <td></td>
          </tr>
        </thead>
        <tbody>
          ${lives.map((life) => alertRow(app, scene, life, several))}
        </tbody>
      </table>
    </div>
  </section>`;
}

/** @param {App} app @param {Scene} scene @param {Life} life @param {boolean} several */
function alertRow(app, scene, life, several) {
  const { moments, run } = life;
  const told = moments.findLast((moment) => moment.status !== "cleared") ?? moments[0];
  const at = (/** @type {string} */ status) =>
    moments.filter((moment) => moment.status === status).map((moment) => goTo(app, scene, run, moment));
  const probes = told.concernsAll ? "all" : told.probes.map((probe) => `#${probe}`).join(", ");
  const key = `${scene.names[run]} ${told.subject} ${moments[0].step}`;
  const isOpen = app.openAlerts.has(key);
  return html`<tr class=${moments.at(-1)?.status === "cleared" ? "cleared" : "open"}>
      ${several ? html`<td>${scene.names[run]}</td>` : nothing}
      <td><code>${told.cause || "gradient is None"}</code></td>
      <td>${told.subject}</td>
      <td>${probes}</td>
      <td>${at("raised")}</td>
      <td>${at("changed")}</td>
      <td>${at("cleared")}</td>
      <td title=${told.location?.file ?? ""}>${told.location ? shortPlace(told.location) : "–"}</td>
      <td>
        <button
          type="button"
          aria-expanded=${isOpen}
          aria-label="Details of ${told.cause} at ${told.subject}"
          @click=${() => app.toggleAlert(key)}
        >
          ${isOpen ? "Less" : "Details"}
        </button>
      </td>
    </tr>
    ${
      isOpen
        ? html`<tr>
            <td colspan=${several ? 9 : 8}>${details(told)}</td>
          </tr>`
        : nothing
    }`;
}

/** The file with the folder that it lies in, and the line. @param {Place} place */
function shortPlace({ file, line }) {
  return `${file.split(/[\\/]/).slice(-2).join("/")}:${line}`;
}

/** @param {App} app @param {Scene} scene @param {number} run @param {AlertRecord} moment */
function goTo(app, scene, run, moment) {
  const { align } = scene.state;
  const index = scene.timeline.looks[run].indexOf(moment.look);
  const text = `${align} ${align === "epoch" ? moment.epoch : moment.step}`;
  if (moment.look < 0 || index < 0) return html`<span>${text}</span>`;
  return html`<button
    type="button"
    aria-label="Go to ${text}"
    @click=${() => app.goToAlert(index, run, moment)}
  >
    ${text}
  </button>`;
}

/** @param {AlertRecord} alert */
function details(alert) {
  return html`<div class="alert-details">
    <p>${alert.message}</p>
    ${alert.location ? code(alert.location) : nothing}
    <p><strong>What to do.</strong> ${alert.remedy}</p>
    ${
      alert.url
        ? html`<p>
            <a href=${alert.url} target="_blank" rel="noopener noreferrer">More about ${alert.cause}</a>
          </p>`
        : nothing
    }
  </div>`;
}

/** @param {Place} place */
function code(place) {
  const lines = place.around.length ? place.around : [[place.line, place.code]];
  return html`<ol class="code" tabindex="0" aria-label="Code around line ${place.line} of ${place.file}">
    ${lines.map(
      ([number, text]) =>
        html`<li class=${number === place.line ? "blamed" : ""}>
          <span>${number}</span><code>${text}</code>
        </li>`,
    )}
  </ol>`;
}
