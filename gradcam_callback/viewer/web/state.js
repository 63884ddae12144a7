// What is looked at, and how; and the same as a text for the address.

/** @import {State} from "./types.js" */

/** @type {State} */
export const DEFAULTS = {
  runs: [],
  series: "",
  layer: "",
  targets: [],
  position: "",
  align: "epoch",
  isFollowing: false,
  isPlaying: false,
  speed: 4,
  layout: "rows",
  view: "overlay",
  opacity: 0.55,
  colormap: "viridis",
  isSmooth: true,
  scale: "each",
  compare: "off",
  pinned: "",
  size: "medium",
  sort: "order",
  filter: "all",
  filterClass: "",
  filterName: "",
  probe: "",
  slice: 0.5,
  dialog: "",
};

/** What each option of a fixed set can be; anything else in an address is ignored. @type {Record<string, string[]>} */
const CHOICES = {
  align: ["epoch", "step"],
  layout: ["rows", "grid"],
  view: ["overlay", "map", "input"],
  colormap: ["viridis", "inferno", "magma", "cividis", "gray", "turbo"],
  scale: ["each", "probe", "all"],
  compare: ["off", "two", "difference"],
  size: ["small", "medium", "large", "pixels", "fit"],
  sort: ["order", "wrong", "drift", "changed", "class", "name"],
  filter: ["all", "alert", "wrong"],
};
/** The lowest and the highest value. @type {Record<string, [number, number]>} */
const RANGES = { opacity: [0, 1], slice: [0, 1], speed: [1, 9] };
const NOT_SHARED = ["isPlaying", "dialog"];

/** @param {State} state @returns {string} */
export function toAddress(state) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    const standard = DEFAULTS[/** @type {keyof State} */ (name)];
    if (NOT_SHARED.includes(name) || String(value) === String(standard)) continue;
    const values = Array.isArray(value) ? value : [String(value)];
    for (const one of values) parameters.append(name, one);
  }
  return parameters.toString();
}

/** @param {string} address @returns {Partial<State>} */
export function fromAddress(address) {
  /** @type {Record<string, unknown>} */
  const found = {};
  const parameters = new URLSearchParams(address);
  for (const name of new Set(parameters.keys())) {
    if (!Object.hasOwn(DEFAULTS, name) || NOT_SHARED.includes(name)) continue;
    const standard = DEFAULTS[/** @type {keyof State} */ (name)];
    const text = parameters.get(name) ?? "";
    if (Array.isArray(standard)) found[name] = parameters.getAll(name);
    else if (typeof standard === "boolean") found[name] = text === "true";
    else if (typeof standard === "number") {
      const [lowest, highest] = RANGES[name];
      const number = text === "" ? NaN : Number(text);
      if (number >= lowest && number <= highest) found[name] = number;
    } else if (!Object.hasOwn(CHOICES, name) || CHOICES[name].includes(text)) found[name] = text;
  }
  return /** @type {Partial<State>} */ (found);
}
