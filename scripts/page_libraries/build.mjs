// Bundles the libraries into trt_native/page/static/libraries.js, and their licences beside it.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "../../trt_native/page/static");

const result = await build({
  absWorkingDir: here,
  entryPoints: ["entry.js"],
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "libraries",
  target: "es2020",
  legalComments: "none",
  metafile: true,
  write: false,
});

const folders = Object.keys(result.metafile.inputs).flatMap((file) => {
  const found = file.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  return found ? [found[1]] : [];
});
const bundled = ["@dagrejs/graphlib"]; // which @dagrejs/dagre contains
const packages = [...new Set([...folders, ...bundled])].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  const text = readFileSync(join(folder, file), "utf8").trim();
  return { title: `${name} ${version}`, license, text };
});

const list = packages.map(({ title }) => title).join(", ");
const code = result.outputFiles[0].text.trim();
writeFileSync(join(target, "libraries.js"), `// ${list}: licences in libraries.LICENSES.txt\n${code}\n`);
const licences = packages.map(({ title, license, text }) => `${title} (${license})\n\n${text}\n`);
writeFileSync(join(target, "libraries.LICENSES.txt"), licences.join(`\n${"-".repeat(80)}\n\n`));
console.log(`${code.length} bytes: ${list}`);
