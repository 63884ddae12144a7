// Colormaps as tables of 256 colours, packed as the pixels of a canvas are.

import { TABLES } from "./colormap_tables.js";

export const NAMES = {
  viridis: "viridis",
  inferno: "inferno",
  magma: "magma",
  cividis: "cividis (colour-blind)",
  gray: "gray",
  turbo: "turbo (not uniform)",
};
export const DIVERGING = "diverging";

/** @type {Map<string, Uint32Array>} */
const packed = new Map();

/**
 * 256 pixels, opaque, in the byte order of canvases on little-endian machines.
 * @param {string} name
 */
export function tableOf(name) {
  let table = packed.get(name);
  if (!table) {
    const bytes = Uint8Array.from(atob(TABLES[name] ?? TABLES.viridis), (c) => c.charCodeAt(0));
    table = Uint32Array.from({ length: 256 }, (_, i) => {
      const [red, green, blue] = bytes.subarray(3 * i, 3 * i + 3);
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    packed.set(name, table);
  }
  return table;
}

/** A CSS gradient from the lowest to the highest colour. @param {string} name */
export function gradientOf(name) {
  const table = tableOf(name);
  const stops = Array.from({ length: 17 }, (_, i) => cssColour(table[Math.min(255, i * 16)]));
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** @param {number} pixel */
function cssColour(pixel) {
  return `rgb(${pixel & 255} ${(pixel >> 8) & 255} ${(pixel >> 16) & 255})`;
}
