// The colours of runs, for lines and names.

export const COLOURS = ["var(--run-1)", "var(--run-2)", "var(--run-3)", "var(--run-4)"];
