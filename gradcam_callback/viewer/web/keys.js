// The keyboard.

/** @import {App} from "./app.js" */

export const KEYS = {
  "← →": "one look back, one look on",
  "Shift + ← →": "ten looks",
  "Home, End": "the first look, the last one",
  Space: "play, stop",
  F: "follow the newest look while training runs",
  "1 to 9": "how fast it plays",
  "Enter on a picture": "show it large",
  "?": "these keys",
  Esc: "close",
};

/** @param {App} app */
export function listenToKeys(app) {
  document.addEventListener("pointerdown", (event) => closeMenus(event.target));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event)) return;
    const act = actionOf(event, app);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** Closes the menus that are open, but for the one that was clicked in. @param {EventTarget | null} [clicked] */
function closeMenus(clicked) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (clicked instanceof Node && menu.contains(clicked)) continue;
    if (menu.contains(document.activeElement)) menu.querySelector("summary")?.focus();
    menu.removeAttribute("open");
  }
}

/** Whether the key belongs to the control that has the focus. @param {KeyboardEvent} event */
function isTyping(event) {
  const target = event.composedPath()[0];
  if (!(target instanceof HTMLElement)) return false;
  if (target.matches("select, textarea, [contenteditable]")) return true;
  const isArrow = /^(Arrow|Home|End)/.test(event.key);
  if (target instanceof HTMLInputElement) {
    if (target.type === "range") return target.getAttribute("aria-label") !== "Look" && isArrow;
    if (target.type === "radio") return isArrow || event.key === " ";
    return target.type === "checkbox" ? event.key === " " : true;
  }
  return event.key === " " && target.matches("button, summary, a");
}

/** @param {KeyboardEvent} event @param {App} app @returns {(() => void) | null} */
function actionOf(event, app) {
  const index = app.scene?.index ?? 0;
  const stride = event.shiftKey ? 10 : 1;
  if (/^[1-9]$/.test(event.key)) return () => app.set({ speed: Number(event.key) });
  switch (event.key) {
    case "ArrowLeft":
      return () => app.go(index - stride);
    case "ArrowRight":
      return () => app.go(index + stride);
    case "Home":
      return () => app.go(0);
    case "End":
      return () => app.go(Infinity);
    case " ":
      return () => app.togglePlay();
    case "f":
    case "F":
      return () => app.set({ isFollowing: !app.state.isFollowing });
    case "?":
      return () => app.set({ dialog: "keys" });
    case "Escape": // a dialog closes by itself
      return app.state.dialog ? null : () => closeMenus();
    default:
      return null;
  }
}
