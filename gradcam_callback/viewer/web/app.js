// Holds the state and the data, and renders when either changes.

/** @import {AlertRecord, DataSource, Run, RunInfo, Series, State} from "./types.js" */
/** @import {Scene} from "./rows.js" */
/** @import {Timeline} from "./timeline.js" */
import { decodeBundle } from "./bundle.js";
import { layerOf, seriesOf } from "./looks.js";
import { Painter } from "./painter.js";
import { makeScene } from "./rows.js";
import { DEFAULTS, fromAddress, toAddress } from "./state.js";
import { makeTimeline } from "./timeline.js";
import { page } from "./view/page.js";
import { render } from "./vendor/lit-html/lit-html.js";

const MOST_RUNS = 4; // side by side
const SPEEDS = [1, 2, 3, 5, 8, 12, 20, 30, 60]; // looks a second
const POLL = 5000; // milliseconds
const MOST_WRITES = 5; // changes of the address a second; Safari refuses more than a hundred in ten
const ADDRESS_DELAY = 250; // milliseconds

/**
 * @typedef {object} Loaded
 * @property {string} version
 * @property {Run | null} run
 * @property {string} error
 */

export class App {
  /**
   * @param {HTMLElement} root
   * @param {DataSource} source
   * @param {{read: () => string, write: (address: string) => void, link: () => string}} address
   */
  constructor(root, source, address) {
    this.root = root;
    this.source = source;
    this.address = address;
    /** @type {State} */
    this.state = { ...DEFAULTS, ...fromAddress(address.read()) };
    /** @type {RunInfo[]} */
    this.infos = [];
    /** @type {Map<string, Loaded>} */
    this.loaded = new Map();
    /** @type {string[]} */
    this.notes = [];
    this.message = ""; // said once, e.g. that a link was copied
    this.readout = "";
    /** @type {Set<string>} */
    this.openAlerts = new Set();
    /** @type {Scene | null} */
    this.scene = null;
    /** @type {{align: string, series: Series[], timeline: Timeline | null}} */
    this.timelines = { align: "", series: [], timeline: null };
    this.painter = new Painter(root, () => this.requestRender());
    this.isRequested = false;
    this.isStarted = false;
    /** @type {number[]} */
    this.writtenAt = []; // the address
    this.postponed = 0;
    this.playedAt = 0;
  }

  async start() {
    await this.refresh();
    this.isStarted = true;
    this.requestRender();
    if (this.source.isLive) {
      setInterval(() => document.hidden || this.refresh(), POLL);
      document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    }
  }

  /** Asks which runs there are, and loads those that are shown and have changed. */
  async refresh() {
    try {
      const { runs, notes } = await this.source.list();
      this.infos = runs;
      this.notes = notes;
    } catch (error) {
      this.notes = [`The runs could not be asked for: ${reason(error)}`];
    }
    await this.loadShown();
  }

  async loadShown() {
    const known = this.infos.map((info) => info.name);
    const shown = this.state.runs.filter((name) => known.includes(name)).slice(0, MOST_RUNS);
    if (!shown.length) shown.push(...this.proposal());
    this.state.runs = shown;
    const changed = this.infos.filter(
      ({ name, version }) => shown.includes(name) && this.loaded.get(name)?.version !== version,
    );
    await Promise.all(changed.map((info) => this.load(info)));
    if (changed.length || !known.length) this.update();
  }

  /** The runs that are shown first: those of a report; of the many that TensorBoard may watch, the newest. */
  proposal() {
    const { infos } = this;
    if (!this.source.isLive) return infos.slice(0, MOST_RUNS).map((info) => info.name);
    const newest = infos.reduce((best, info) => (info.time > best.time ? info : best), infos[0]);
    return newest ? [newest.name] : [];
  }

  /** @param {RunInfo} info */
  async load({ name, version }) {
    try {
      const run = decodeBundle(await this.source.load(name));
      this.loaded.set(name, { version, run: { ...run, name }, error: "" });
    } catch (error) {
      const before = this.loaded.get(name)?.run ?? null;
      this.loaded.set(name, { version, run: before, error: reason(error) });
    }
  }

  /** The runs that are shown and could be read. @returns {Run[]} */
  get runs() {
    const runs = this.state.runs.map((name) => this.loaded.get(name)?.run);
    return /** @type {Run[]} */ (runs.filter((run) => run && seriesOf(run, this.state)?.epochs.length));
  }

  /** Finds out what there is to show, after data or options have changed. */
  update() {
    const { state, runs } = this;
    const series = /** @type {Series[]} */ (runs.map((run) => seriesOf(run, state)));
    if (!series.length) this.scene = null;
    else {
      if (!series.some((one) => layerOf(one, state))) state.layer = lastLayer(series);
      const names = runs.map((run) => run.name);
      const timeline = this.timelineOf(series);
      const last = timeline.positions[timeline.positions.length - 1];
      if (!state.position || state.isFollowing) state.position = last;
      this.scene = makeScene(names, series, timeline, state);
    }
    this.requestRender();
  }

  /** The same as before, as long as its looks are: charts and strips keep what they know of it. @param {Series[]} series */
  timelineOf(series) {
    const { align } = this.state;
    const before = this.timelines;
    const isSame = before.align === align && before.series.length === series.length;
    if (!isSame || !before.timeline || before.series.some((one, i) => one !== series[i])) {
      this.timelines = { align, series, timeline: makeTimeline(series, align) };
    }
    return /** @type {Timeline} */ (this.timelines.timeline);
  }

  /** @param {Partial<State>} changes */
  set(changes) {
    this.message = "";
    const before = this.scene;
    Object.assign(this.state, changes);
    if (before && changes.align && changes.align !== this.timelines.align) this.realign(before);
    if ("runs" in changes) this.loadShown().then(() => this.update());
    else this.update();
  }

  /** Finds the looks that were shown, now that other numbers stand for them. @param {Scene} before */
  realign(before) {
    const after = this.timelineOf(before.series);
    const moved = (/** @type {number} */ index) => {
      const { looks, stale } = before.timeline;
      // A run that has no look of its own there would lead to an earlier one.
      const run = looks.findIndex((own, i) => own[index] >= 0 && !stale[i][index]);
      return after.positions[after.looks[run].indexOf(looks[run][index])];
    };
    this.state.position = moved(before.index);
    if (this.state.pinned) this.state.pinned = moved(before.pinned);
  }

  /** Goes to a position of the slider by its index. @param {number} index */
  go(index) {
    if (!this.scene) return;
    const { positions } = this.scene.timeline;
    const inside = Math.max(0, Math.min(positions.length - 1, index));
    const isLast = inside === positions.length - 1;
    this.set({ position: positions[inside], isFollowing: this.state.isFollowing && isLast });
  }

  /**
   * Goes to where an alert began: its look, its layer, and the first of its probes.
   * @param {number} index of the position
   * @param {number} run
   * @param {AlertRecord} alert
   */
  goToAlert(index, run, alert) {
    this.go(index);
    if (!this.scene) return;
    const names = this.scene.series[run].layers.map((layer) => layer.name);
    const layer = [alert.layer, alert.subject.replace(/^regions\//, "")].find((name) =>
      names.includes(name ?? ""),
    );
    const row = this.scene.rows.find(({ probes }) => alert.probes.includes(probes[run]));
    this.set({ layer: layer ?? this.state.layer, probe: row?.key ?? this.state.probe });
    requestAnimationFrame(() =>
      this.root.querySelector(".selected")?.scrollIntoView({ block: "nearest", behavior: "auto" }),
    );
  }

  togglePlay() {
    if (!this.scene) return;
    const isPlaying = !this.state.isPlaying;
    const isAtEnd = this.scene.index === this.scene.timeline.positions.length - 1;
    if (isPlaying && isAtEnd) this.go(0);
    this.playedAt = performance.now();
    this.set({ isPlaying, isFollowing: false });
    if (isPlaying) requestAnimationFrame((now) => this.play(now));
  }

  /** @param {number} now */
  play(now) {
    if (!this.state.isPlaying || !this.scene) return;
    const due = Math.floor(((now - this.playedAt) / 1000) * SPEEDS[this.state.speed - 1]);
    if (due > 0) {
      this.playedAt = now;
      this.go(this.scene.index + due);
      const isAtEnd = this.scene.index === this.scene.timeline.positions.length - 1;
      if (isAtEnd) this.set({ isPlaying: false });
    }
    requestAnimationFrame((next) => this.play(next));
  }

  /** Shows or hides what is known of an alert. @param {string} key */
  toggleAlert(key) {
    if (!this.openAlerts.delete(key)) this.openAlerts.add(key);
    this.requestRender();
  }

  /** Says something for a moment, e.g. that a link was copied. @param {string} text */
  say(text) {
    this.message = text;
    this.requestRender();
  }

  requestRender() {
    if (this.isRequested) return;
    this.isRequested = true;
    requestAnimationFrame(() => {
      this.isRequested = false;
      this.render();
    });
  }

  /** Writes the address; where it changes too often for a browser, the last of several changes after a while. */
  writeAddress() {
    const now = performance.now();
    this.writtenAt = this.writtenAt.filter((time) => now - time < 1000);
    clearTimeout(this.postponed);
    if (this.writtenAt.length >= MOST_WRITES) {
      this.postponed = setTimeout(() => this.writeAddress(), ADDRESS_DELAY);
      return;
    }
    const text = toAddress(this.state);
    if (text === this.address.read()) return; // TensorBoard may have changed it, so what was written last says nothing
    this.writtenAt.push(now);
    this.address.write(text);
  }

  render() {
    const started = performance.now();
    render(page(this), this.root);
    this.painter.paintAll();
    if (this.isStarted && this.scene) this.writeAddress();
    performance.measure("gradcam-render", { start: started });
  }
}

/** @param {unknown} error */
function reason(error) {
  return error instanceof Error ? error.message : String(error);
}

/** @param {Series[]} series */
function lastLayer(series) {
  const { layers } = series.find((one) => one.layers.length) ?? series[0];
  return layers[layers.length - 1]?.name ?? "";
}
