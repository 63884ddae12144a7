// A number for each object, so that what is painted of it can be told by a text.

/** @type {WeakMap<object, number>} */
const known = new WeakMap();
let last = 0;

/** The same number for the same object, and for no other one. @param {object} object */
export function identityOf(object) {
  let number = known.get(object);
  if (number === undefined) {
    number = ++last;
    known.set(object, number);
  }
  return number;
}
