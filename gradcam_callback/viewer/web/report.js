// The entry of the HTML file: the data are in the page.

/** @import {DataSource} from "./types.js" */
import { App } from "./app.js";
import { listenToKeys } from "./keys.js";

/** @type {DataSource} */
const source = {
  isLive: false,
  async list() {
    return JSON.parse(document.getElementById("gradcam-runs")?.textContent ?? "{}");
  },
  async load(name) {
    const { runs } = await this.list();
    const number = runs.findIndex((run) => run.name === name);
    const text = document.querySelector(`script[data-run="${number}"]`)?.textContent ?? "";
    const compressed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  },
};

const address = {
  read: () => location.hash.slice(1),
  write: (/** @type {string} */ text) => {
    // A report in a notebook has no address of its own.
    if (location.protocol !== "about:") history.replaceState(null, "", `#${text}`);
  },
  link: () => location.href,
};

const root = document.createElement("div");
root.className = "gradcam";
document.body.append(root);
const app = new App(root, source, address);
listenToKeys(app);
app.start();
