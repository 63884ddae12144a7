// Reads the bytes of a run. Whatever does not fit is refused with a reason; sizes are checked before memory is taken.

/** @import {AlertRecord, Layer, Numbers, Place, ProbeSet, Run, Series} from "./types.js" */

const MAGIC = "GCV1";
const TYPES = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };

/** The data of a run cannot be used; the message says why. */
export class BundleError extends Error {}

/**
 * @param {ArrayBuffer} buffer
 * @returns {Run}
 */
export function decodeBundle(buffer) {
  const magic = String.fromCharCode(...new Uint8Array(buffer, 0, Math.min(4, buffer.byteLength)));
  if (magic !== MAGIC || buffer.byteLength < 8) throw new BundleError("The data are of an unknown form.");
  const start = 8 + new DataView(buffer).getUint32(4, true);
  if (start > buffer.byteLength) throw new BundleError("The data are cut short.");
  const index = parse(new Uint8Array(buffer, 8, start - 8));
  if (index?.version !== 1) {
    throw new BundleError(`The data are of version ${index?.version}, and this viewer reads 1.`);
  }
  try {
    const series = index.series.map((/** @type {any} */ one) => readSeries(one, buffer, start));
    return { name: String(index.run), notes: texts(index.notes), series };
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError(`The data do not fit together: ${error}`);
  }
}

/** @param {Uint8Array<ArrayBuffer>} bytes @returns {any} */
function parse(bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new BundleError(`The data are damaged: ${error}`);
  }
}

/** @param {any} given @param {ArrayBuffer} buffer @param {number} start @returns {Series} */
function readSeries(given, buffer, start) {
  const E = given.epochs.length;
  const T = given.targets.length;
  const N = given.arrays.predictions.shape[1];
  /** @type {(name: string, shape: number[]) => any} */
  const array = (name, shape) => readArray(given.arrays[name], name, shape, buffer, start);
  /** @type {(name: string, shape: number[]) => any} */
  const optional = (name, shape) => (name in given.arrays ? array(name, shape) : null);
  /** @type {(layer: any, l: number) => Layer} */
  const readLayer = (layer, l) => ({
    name: String(layer.name),
    shape: layer.shape.map(Number),
    layout: String(layer.layout),
    levels: array(`levels/${l}`, [E, T, N, ...layer.shape]),
    peaks: array(`peaks/${l}`, [E, T, N]),
    states: array(`states/${l}`, [E, T, N]),
    flags: array(`flags/${l}`, [E, T, N]),
    norms: array(`norms/${l}`, [E, T, N]),
    extents: optional(`extents/${l}`, [E, N, 4]),
  });
  return {
    name: String(given.name),
    method: String(given.method),
    substitute: String(given.substitute ?? ""),
    task: String(given.task),
    targets: texts(given.targets),
    classNames: given.classNames === null ? null : texts(given.classNames),
    epochs: numbers(given.epochs, E),
    steps: numbers(given.steps, E),
    wallTimes: numbers(given.wallTimes, E),
    probeSetOf: numbers(given.probeSetOf, E),
    probeSets: given.probeSets.map((/** @type {any} */ set) => readProbeSet(set, buffer, start)),
    alerts: given.alerts.map(readAlert),
    layers: given.layers.map(readLayer),
    probes: N,
    classes: array("classes", [E, T, N]),
    scores: array("scores", [E, T, N]),
    targetProbabilities: array("targetProbabilities", [E, T, N]),
    predictions: array("predictions", [E, N]),
    predictionProbabilities: array("predictionProbabilities", [E, N]),
    labelProbabilities: array("labelProbabilities", [E, N]),
    boxes: optional("boxes", [E, T, N, 4]),
  };
}

/**
 * @param {any} entry
 * @param {string} name
 * @param {number[]} shape
 * @param {ArrayBuffer} buffer
 * @param {number} start
 * @returns {Numbers}
 */
function readArray(entry, name, shape, buffer, start) {
  const type = TYPES[/** @type {keyof typeof TYPES} */ (entry?.dtype)];
  if (!type) throw new BundleError(`The array ${name} is missing, or of an unknown type.`);
  if (String(entry.shape) !== String(shape)) {
    throw new BundleError(`The array ${name} has the shape ${entry.shape}, and not ${shape}.`);
  }
  const length = shape.reduce((product, size) => product * size, 1);
  const offset = start + entry.offset;
  const fits = Number.isInteger(offset) && entry.offset >= 0 && offset % type.BYTES_PER_ELEMENT === 0;
  if (!fits || offset + length * type.BYTES_PER_ELEMENT > buffer.byteLength) {
    throw new BundleError(`The array ${name} lies outside of the data.`);
  }
  return new type(buffer, offset, length);
}

/** @param {any} given @param {ArrayBuffer} buffer @param {number} start @returns {ProbeSet} */
function readProbeSet(given, buffer, start) {
  const images = given.images.map((/** @type {any} */ image) => {
    const isInside = image.offset >= 0 && start + image.offset + image.length <= buffer.byteLength;
    if (!isInside) throw new BundleError("A picture lies outside of the data.");
    const type = image.type === "image/png" ? "image/png" : "image/jpeg";
    const [width, height, slices] = [image.width, image.height, image.slices].map((size) =>
      Math.max(1, Math.min(1 << 16, Number(size) || 1)),
    );
    return {
      type,
      width,
      height,
      slices,
      content: new Uint8Array(buffer, start + image.offset, image.length),
    };
  });
  return {
    fingerprint: String(given.fingerprint),
    names: texts(given.names),
    labels: given.labels.map((/** @type {unknown} */ label) => (typeof label === "number" ? label : null)),
    labelTexts: texts(given.labelTexts),
    images,
  };
}

/** @param {any} given @returns {AlertRecord} */
function readAlert(given) {
  const url = String(given.url ?? "");
  return {
    status: String(given.status),
    subject: String(given.subject),
    layer: given.layer === null ? "" : String(given.layer),
    cause: given.cause === null ? "" : String(given.cause),
    epoch: Number(given.epoch),
    step: Number(given.step),
    look: typeof given.look === "number" ? given.look : -1,
    probes: Array.isArray(given.probes) ? given.probes.map(Number) : [],
    concernsAll: given.concernsAll === true,
    targets: Array.isArray(given.targets) ? texts(given.targets) : [],
    message: String(given.message),
    remedy: String(given.remedy),
    url: url.startsWith("https://") ? url : "",
    location: given.location ? readPlace(given.location) : null,
  };
}

/** @param {any} given @returns {Place} */
function readPlace(given) {
  const around = Array.isArray(given.around) ? given.around : [];
  return {
    file: String(given.file),
    line: Number(given.line),
    function: String(given.function),
    code: String(given.code ?? ""),
    around: around.map((/** @type {any} */ line) => [Number(line?.[0]), String(line?.[1])]),
  };
}

/** @param {unknown[]} values @returns {string[]} */
function texts(values) {
  return values.map(String);
}

/** @param {unknown[]} values @param {number} length @returns {number[]} */
function numbers(values, length) {
  if (values.length !== length) throw new BundleError("The looks do not agree in their number.");
  return values.map(Number);
}
