// The probes' images, decoded once. A picture that is not ready yet is drawn when it is.

/** @import {ProbeImage} from "./types.js" */

/** @type {WeakMap<ProbeImage, ImageBitmap | "waiting" | "damaged">} */
const bitmaps = new WeakMap();

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
    createImageBitmap(new Blob([image.content], { type: image.type })).then(
      (bitmap) => {
        bitmaps.set(image, bitmap);
        whenReady();
      },
      () => bitmaps.set(image, "damaged"),
    );
  }
  return null;
}
