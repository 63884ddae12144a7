// Labelled controls.

import { html } from "../vendor/lit-html/lit-html.js";

/**
 * @template {string} Value
 * @param {string} label
 * @param {string} value
 * @param {Record<Value, string>} options value to text
 * @param {(value: Value) => void} choose
 */
export function select(label, value, options, choose) {
  const changed = (/** @type {Event} */ event) =>
    choose(/** @type {Value} */ (/** @type {HTMLSelectElement} */ (event.target).value));
  return html`<label class="field"
    ><span>${label}</span>
    <select @change=${changed} .value=${value}>
      ${Object.entries(options).map(
        ([name, text]) => html`<option value=${name} ?selected=${name === value}>${text}</option>`,
      )}
    </select></label
  >`;
}

/**
 * A choice of few, all of them visible.
 * @template {string} Value
 * @param {string} label
 * @param {string} value
 * @param {Record<Value, string>} options value to text
 * @param {(value: Value) => void} choose
 */
export function segments(label, value, options, choose) {
  const entries = /** @type {[Value, string][]} */ (Object.entries(options));
  return html`<fieldset class="segments">
    <legend>${label}</legend>
    ${entries.map(
      ([name, text]) =>
        html`<label
          ><input type="radio" name=${label} .checked=${name === value} @change=${() => choose(name)} /><span
            >${text}</span
          ></label
        >`,
    )}
  </fieldset>`;
}

/**
 * @param {string} label
 * @param {number} value 0..1
 * @param {(value: number) => void} choose
 */
export function share(label, value, choose) {
  const moved = (/** @type {Event} */ event) =>
    choose(Number(/** @type {HTMLInputElement} */ (event.target).value) / 100);
  const percent = Math.round(value * 100);
  return html`<label class="field"
    ><span>${label}</span>
    <input
      type="range"
      min="0"
      max="100"
      .value=${String(percent)}
      aria-valuetext="${percent} %"
      @input=${moved}
    />
    <output>${percent} %</output></label
  >`;
}
