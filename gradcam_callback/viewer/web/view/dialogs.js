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
  const close = () => app.set({ dialog: "" });
  const content = dialog === "keys" ? keys() : large(app, scene);
  // Shown as a modal by the painter's pass, after it is in the page.
  const show = (/** @type {HTMLDialogElement} */ element) => element.open || element.showModal();
  return html`<dialog
    class="painted ${dialog}"
    aria-label=${dialog === "keys" ? "Keys" : "Large view"}
    .isSeen=${true}
    .paintKey=${dialog}
    .paint=${show}
    @close=${close}
  >
    <button type="button" class="close" @click=${close}>Close</button>
    ${content}
  </dialog>`;
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
