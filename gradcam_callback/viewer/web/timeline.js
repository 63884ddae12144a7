// The positions of the slider: every look of every run that is shown, aligned by epoch or by step.

/** @import {Series} from "./types.js" */

/**
 * A position is written "12", or "12.1" for the second look at epoch (or step) 12.
 *
 * @typedef {object} Timeline
 * @property {string[]} positions in order
 * @property {Int32Array[]} looks of each run: the look shown at each position, its own or its latest earlier one; -1: none
 * @property {Uint8Array[]} stale of each run: 1 where the look is an earlier one
 */

/**
 * @param {Series[]} series one a run
 * @param {"epoch" | "step"} align
 * @returns {Timeline}
 */
export function makeTimeline(series, align) {
  const keys = series.map((one) => lookKeys(align === "epoch" ? one.epochs : one.steps));
  const all = [...new Set(keys.flat())].sort((a, b) => a - b);
  const looks = keys.map((own) => latestAt(own, all));
  const stale = looks.map((own, run) =>
    Uint8Array.from(own, (look, i) => Number(look >= 0 && keys[run][look] !== all[i])),
  );
  return { positions: all.map(nameKey), looks, stale };
}

const MOST_AT_ONCE = 1000; // looks at one epoch or step

/** A number a look that grows: looks at one epoch stand behind one another. @param {number[]} counts */
function lookKeys(counts) {
  const keys = [];
  let last = -1;
  for (const count of counts) {
    const key = count * MOST_AT_ONCE;
    last = key > last ? key : last + 1;
    keys.push(last);
  }
  return keys;
}

/** @param {number} key */
function nameKey(key) {
  const rest = key % MOST_AT_ONCE;
  return `${Math.floor(key / MOST_AT_ONCE)}${rest ? `.${rest}` : ""}`;
}

/** @param {number[]} own ascending @param {number[]} all ascending */
function latestAt(own, all) {
  const looks = new Int32Array(all.length);
  let look = -1;
  all.forEach((key, i) => {
    while (look + 1 < own.length && own[look + 1] <= key) look++;
    looks[i] = look;
  });
  return looks;
}

/**
 * The index of a position; of one that is not there, of the latest before it.
 * @param {Timeline} timeline @param {string} position
 */
export function indexOf(timeline, position) {
  const exact = timeline.positions.indexOf(position);
  if (exact >= 0) return exact;
  const wanted = Number(position);
  let index = timeline.positions.length - 1;
  while (index > 0 && Number(timeline.positions[index]) > wanted) index--;
  return Math.max(0, index);
}
