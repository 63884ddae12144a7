// The slider over the recorded looks, and how it is played.

/** @import {App} from "../app.js" */
/** @import {Scene} from "../rows.js" */
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** @param {App} app @param {Scene} scene */
export function timelineBar(app, scene) {
  const { positions } = scene.timeline;
  const { state } = app;
  const moved = (/** @type {Event} */ event) =>
    app.go(Number(/** @type {HTMLInputElement} */ (event.target).value));
  return html`<footer aria-label="Epochs">
    <button
      type="button"
      class="play"
      aria-label=${state.isPlaying ? "Stop" : "Play"}
      @click=${() => app.togglePlay()}
    >
      ${state.isPlaying ? "❚❚" : "►"}
    </button>
    <div class="slider">
      <input
        type="range"
        aria-label="Look"
        min="0"
        max=${positions.length - 1}
        .value=${String(scene.index)}
        aria-valuetext=${inWords(scene)}
        @input=${moved}
      />
      <div class="ticks" aria-hidden="true">${ticks(scene)}</div>
    </div>
    <output class="where" title="Look ${scene.index + 1} of ${positions.length}">${inWords(scene)}</output>
    ${speed(app)}
    <label class="check"
      ><input
        type="checkbox"
        .checked=${state.isFollowing}
        @change=${() => app.set({ isFollowing: !state.isFollowing })}
      />
      newest</label
    >
    <output class="readout">${app.readout}</output>
  </footer>`;
}

/** @param {Scene} scene */
export function inWords({ series, timeline, index, state }) {
  const run = timeline.stale.findIndex((stale, i) => !stale[index] && timeline.looks[i][index] >= 0);
  const look = timeline.looks[run]?.[index];
  if (look === undefined) return `${state.align} ${timeline.positions[index]}`;
  const { epochs, steps } = series[run];
  return `epoch ${epochs[look]} · step ${steps[look]}`;
}

/** @param {App} app */
function speed(app) {
  const changed = (/** @type {Event} */ event) =>
    app.set({ speed: Number(/** @type {HTMLSelectElement} */ (event.target).value) });
  return html`<label class="field"
    ><span>Speed</span>
    <select @change=${changed}>
      ${Array.from(
        { length: 9 },
        (_, i) => html`<option value=${i + 1} ?selected=${i + 1 === app.state.speed}>${i + 1}</option>`,
      )}
    </select></label
  >`;
}

/** Where alerts begin, change and end. @param {Scene} scene */
function ticks({ series, timeline }) {
  const last = Math.max(1, timeline.positions.length - 1);
  const seen = new Set();
  return series.flatMap((one, run) =>
    one.alerts.map((alert) => {
      const at = timeline.looks[run].indexOf(alert.look);
      const key = `${at} ${alert.status}`;
      if (alert.look < 0 || at < 0 || seen.has(key)) return nothing;
      seen.add(key);
      return html`<i class="tick ${alert.status}" style="left: ${(100 * at) / last}%"></i>`;
    }),
  );
}
