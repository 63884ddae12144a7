/**
 * What the modules of the viewer pass to each other. Axes: E looks, T targets, N probes, `h w` a map.
 *
 * @typedef {Uint8Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>} Numbers
 *
 * @typedef {object} ProbeImage
 * @property {string} type its media type
 * @property {number} width of the image that the model sees, in pixels
 * @property {number} height of one slice
 * @property {number} slices how many slices of a volume stand under one another
 * @property {Uint8Array<ArrayBuffer>} content the file
 *
 * @typedef {object} ProbeSet
 * @property {string} fingerprint
 * @property {string[]} names
 * @property {(number | null)[]} labels
 * @property {string[]} labelTexts
 * @property {ProbeImage[]} images
 *
 * @typedef {object} Layer
 * @property {string} name
 * @property {number[]} shape of its maps: (h, w); of signals (w), of volumes (d, h, w)
 * @property {string} layout
 * @property {Uint8Array} levels `(E, T, N, h, w)`; a value is `level / 255 * peak`
 * @property {Float32Array} peaks `(E, T, N)`; NaN where there is no map
 * @property {Uint8Array} states `(E, T, N)`
 * @property {Uint8Array} flags `(E, T, N)`
 * @property {Float32Array} norms `(E, T, N)`
 * @property {Float32Array | null} extents `(E, N, 4)`
 *
 * @typedef {object} Place
 * @property {string} file
 * @property {number} line
 * @property {string} function
 * @property {string} code
 * @property {[number, string][]} around
 *
 * @typedef {object} AlertRecord
 * @property {string} status "raised", "changed" or "cleared"
 * @property {string} subject
 * @property {string} layer empty where it is about none
 * @property {string} cause
 * @property {number} epoch
 * @property {number} step
 * @property {number} look the look at or after it; -1 where there is none
 * @property {number[]} probes
 * @property {boolean} concernsAll
 * @property {string[]} targets
 * @property {string} message
 * @property {string} remedy
 * @property {string} url
 * @property {Place | null} location
 *
 * @typedef {object} Series
 * @property {string} name
 * @property {string} method
 * @property {string} substitute
 * @property {string} task
 * @property {string[]} targets
 * @property {string[] | null} classNames
 * @property {number[]} epochs
 * @property {number[]} steps
 * @property {number[]} wallTimes
 * @property {number[]} probeSetOf
 * @property {ProbeSet[]} probeSets
 * @property {AlertRecord[]} alerts
 * @property {Layer[]} layers
 * @property {number} probes N
 * @property {Int32Array} classes `(E, T, N)`
 * @property {Float32Array} scores `(E, T, N)`
 * @property {Float32Array} targetProbabilities `(E, T, N)`
 * @property {Int32Array} predictions `(E, N)`
 * @property {Float32Array} predictionProbabilities `(E, N)`
 * @property {Float32Array} labelProbabilities `(E, N)`
 * @property {Float32Array | null} boxes `(E, T, N, 4)`
 *
 * @typedef {object} Run
 * @property {string} name
 * @property {string[]} notes
 * @property {Series[]} series
 *
 * @typedef {object} RunInfo
 * @property {string} name
 * @property {string} version
 * @property {number} time of its last record, in seconds since 1970
 *
 * @typedef {object} DataSource
 * @property {boolean} isLive
 * @property {() => Promise<{runs: RunInfo[], notes: string[]}>} list
 * @property {(name: string) => Promise<ArrayBuffer>} load
 *
 * @typedef {object} State
 * @property {string[]} runs names of those that are shown
 * @property {string} series
 * @property {string} layer
 * @property {string[]} targets titles of those that are shown; empty: all
 * @property {string} position of the slider
 * @property {"epoch" | "step"} align
 * @property {boolean} isFollowing
 * @property {boolean} isPlaying
 * @property {number} speed 1 to 9
 * @property {"rows" | "grid"} layout
 * @property {"overlay" | "map" | "input"} view
 * @property {number} opacity 0..1
 * @property {string} colormap
 * @property {boolean} isSmooth
 * @property {"each" | "probe" | "all"} scale
 * @property {"off" | "two" | "difference"} compare
 * @property {string} pinned position of the other epoch
 * @property {"small" | "medium" | "large" | "pixels" | "fit"} size
 * @property {string} sort
 * @property {"all" | "alert" | "wrong"} filter
 * @property {string} filterClass
 * @property {string} filterName
 * @property {string} probe the name of the selected one
 * @property {number} slice 0..1, of volumes
 * @property {"" | "keys" | "large" | "alerts"} dialog
 *
 * @typedef {object} Tile what one canvas shows
 * @property {number} run index among those that are shown
 * @property {Series} series
 * @property {Layer | null} layer
 * @property {number} look -1: there is none yet
 * @property {number} [other] the look that is subtracted
 * @property {boolean} isStale
 * @property {number} target
 * @property {number} probe -1: the run has none of this name
 * @property {Shown[]} together all that is shown beside it, which one scale may be for
 *
 * @typedef {object} Shown a target of a run
 * @property {Series} series
 * @property {Layer | null} layer
 * @property {number} target
 */

export {};
