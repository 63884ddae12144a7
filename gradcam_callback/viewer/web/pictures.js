// The probes' images, decoded once. A picture that is not ready yet is drawn when it is.

/** @import {ProbeImage} from "./types.js" */

/** @type {WeakMap<ProbeImage, ImageBitmap | "waiting" | "damaged">} */
const bitmaps = new WeakMap();
/** @type {WeakMap<ProbeImage, Promise<void>>} */
const decodings = new WeakMap();

/**
 * @param {ProbeImage} image
 * @param {() => void} whenReady called once, when a picture that was not ready has become so
 * @returns {ImageBitmap | null}
 */
export function bitmapOf(image, whenReady) {
  const known = bitmaps.get(image);
  if (known instanceof ImageBitmap) return known;
  if (known === undefined) {
    bitmaps.set(image, "waiting");
    const decoding = createImageBitmap(new Blob([image.content], { type: image.type })).then(
      (bitmap) => {
        bitmaps.set(image, bitmap);
        whenReady();
      },
      () => {
        bitmaps.set(image, "damaged");
      },
    );
    decodings.set(image, decoding);
  }
  return null;
}

/**
 * Resolves once these pictures are decoded, or known to be damaged.
 * @param {Iterable<ProbeImage | null>} images
 * @param {() => void} whenReady called for each that was not: a tile on the page may wait for it, too
 */
export async function decoded(images, whenReady) {
  const own = [...images].filter((image) => image !== null);
  for (const image of own) bitmapOf(image, whenReady);
  await Promise.all(own.map((image) => decodings.get(image)));
}
