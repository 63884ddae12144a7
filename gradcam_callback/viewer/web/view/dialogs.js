// What opens over the page: the keys, and one probe as large as the window.

/** @import {App} from "../app.js" */
/** @import {Scene} from "../rows.js" */
import { KEYS } from "../keys.js";
import { labelText, tilesOf } from "../rows.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { selectedRow } from "./probe_rows.js";
import { tileView } from "./tile_view.js";
import { inWords } from "./timeline_bar.js";

/** @param {App} app @param {Scene} scene */
export function dialogs(app, scene) {
  const { dialog } = scene.state;
  if (!dialog) return nothing;
  const content = dialog === "keys" ? keys() : large(app, scene);
  // Shown as a modal by the painter's pass, after it is in the page.
  const show = (/** @type {HTMLDialogElement} */ element) => element.open || element.showModal();
  // A dialog that is closed gives the focus back to what opened it; one that is only taken out of the page does not.
  const close = (/** @type {Event} */ event) =>
    /** @type {HTMLElement} */ (event.currentTarget).closest("dialog")?.close();
  return html`<dialog
    class="painted ${dialog}"
    aria-label=${dialog === "keys" ? "Keys" : "Large view"}
    .isSeen=${true}
    .paintKey=${dialog}
    .paint=${show}
    @keydown=${keepFocus}
    @close=${(/** @type {Event} */ event) => closed(app, /** @type {Node} */ (event.target))}
  >
    <button type="button" class="close" @click=${close}>Close</button>
    ${content}
  </dialog>`;
}

/** Goes from the last control to the first one and back, and not to the browser's own. @param {KeyboardEvent} event */
function keepFocus(event) {
  if (event.key !== "Tab") return;
  const dialog = /** @type {HTMLElement} */ (event.currentTarget);
  const controls = /** @type {NodeListOf<HTMLElement>} */ (dialog.querySelectorAll("button, a[href], input"));
  const [first, last] = [controls[0], controls[controls.length - 1]];
  if (document.activeElement !== (event.shiftKey ? first : last)) return;
  event.preventDefault();
  (event.shiftKey ? last : first).focus();
}

/** @param {App} app @param {Node} dialog */
function closed(app, dialog) {
  app.set({ dialog: "" });
  const focused = document.activeElement ?? document.body;
  // What opened it may be gone, e.g. a probe that does not pass the filter any more.
  const isNowhere = focused === document.body || dialog.contains(focused);
  if (isNowhere)
    /** @type {HTMLElement | null} */ (app.root.querySelector("input[aria-label='Look']"))?.focus();
}

function keys() {
  return html`<h2>Keys</h2>
    <dl>
      ${Object.entries(KEYS).map(
        ([key, meaning]) =>
          html`<dt><kbd>${key}</kbd></dt>
            <dd>${meaning}</dd>`,
      )}
    </dl>`;
}

/** @param {App} app @param {Scene} scene */
function large(app, scene) {
  const row = selectedRow(scene);
  if (!row) return nothing;
  /** @type {Scene} */
  const enlarged = { ...scene, state: { ...scene.state, size: "fit" } };
  return html`<h2>${row.name} <small>${labelText(scene, row)} · ${inWords(scene)}</small></h2>
    <div class="now">${tilesOf(enlarged, row).map((tile) => tileView(app, enlarged, row, tile))}</div>
    <output>${app.readout}</output>`;
}
