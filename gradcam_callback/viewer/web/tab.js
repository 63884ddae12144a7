// The entry of TensorBoard's tab, which is a frame in TensorBoard's page.

/** @import {DataSource} from "./types.js" */
import { App } from "./app.js";
import { listenToKeys } from "./keys.js";

const HASH_KEY = "p.gradcam.view"; // TensorBoard leaves to plugins what begins with "p.<plugin>."

/** @param {string} route @returns {Promise<Response>} */
async function ask(route) {
  const response = await fetch(new URL(route, import.meta.url));
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({ error: `status ${response.status}` }));
  throw new Error(String(answer.error));
}

/** @type {DataSource} */
const source = {
  isLive: true,
  list: async () => (await ask("../runs")).json(),
  load: async (name) => (await ask(`../bundle?run=${encodeURIComponent(name)}`)).arrayBuffer(),
};

/** TensorBoard's own window, where the address is; its page may be out of reach. */
function outer() {
  try {
    return parent.location.hash === undefined ? window : parent;
  } catch {
    return window;
  }
}

const address = {
  read() {
    const found = outer()
      .location.hash.split("&")
      .find((part) => part.startsWith(`${HASH_KEY}=`));
    return decodeURIComponent(found?.slice(HASH_KEY.length + 1) ?? "");
  },
  write(/** @type {string} */ text) {
    const { history, location } = outer();
    // While another tab is open, the address is that tab's.
    if (location.hash && !location.hash.startsWith("#gradcam") && !location.hash.startsWith("#&")) return;
    const others = location.hash.split("&").filter((part) => !part.startsWith(`${HASH_KEY}=`));
    if (text) others.push(`${HASH_KEY}=${encodeURIComponent(text)}`);
    const hash = others.join("&") || "#gradcam";
    if (hash !== location.hash) history.replaceState(history.state, "", hash);
  },
  link: () => outer().location.href,
};

/** Dark where TensorBoard is. */
function followTheme() {
  const follow = () =>
    document.body.classList.toggle("dark", outer().document.body.classList.contains("dark-mode"));
  document.body.classList.add("themed");
  new MutationObserver(follow).observe(outer().document.body, { attributeFilter: ["class"] });
  follow();
}

/** Called by TensorBoard. */
export async function render() {
  const styles = document.createElement("link");
  styles.rel = "stylesheet";
  styles.href = new URL("./viewer.css", import.meta.url).href;
  document.head.append(styles);
  document.documentElement.lang = "en";
  document.title = "Grad-CAM";
  const root = document.createElement("div");
  root.className = "gradcam";
  document.body.append(root);
  followTheme();
  window.focus(); // or the keys would go to TensorBoard's own page
  const app = new App(root, source, address);
  listenToKeys(app);
  await app.start();
}
