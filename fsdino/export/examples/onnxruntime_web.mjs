// Finds the object of an annotated photograph in another one, with onnxruntime-web under Node.js.
//
//   npm install onnxruntime-web
//   node examples/onnxruntime_web.mjs . support.ppm support-mask.pgm query.ppm mask.pgm

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import * as ort from 'onnxruntime-web';

ort.env.wasm.numThreads = 1;

/** Reads a binary PPM (P6, 3 channels) or PGM (P5, 1 channel) with 8 bits. */
function readNetpbm(path, channels) {
  const file = readFileSync(path);
  const gap = '(?:\\s+|#[^\\n]*\\n)+';
  const header = new RegExp(`^P${channels === 3 ? 6 : 5}${gap}(\\d+)${gap}(\\d+)${gap}255\\s`);
  const found = header.exec(file.toString('latin1', 0, 4096));
  if (!found) throw new Error(`${path} is not a binary ${channels === 3 ? 'PPM' : 'PGM'} with 8 bits`);
  const [width, height] = [Number(found[1]), Number(found[2])];
  const end = found[0].length + height * width * channels;
  if (file.length < end) throw new Error(`${path} ends too early`);
  return { height, width, pixels: new Uint8Array(file.subarray(found[0].length, end)) };
}

/** Loads a graph; its weights are in a file beside it where the model is large. */
function load(folder, name) {
  const weights = join(folder, 'weights.data');
  const externalData = existsSync(weights)
    ? [{ path: 'weights.data', data: new Uint8Array(readFileSync(weights)) }]
    : [];
  const graph = new Uint8Array(readFileSync(join(folder, `${name}.onnx`)));
  return ort.InferenceSession.create(graph, { externalData });
}

/** Runs a graph on those of the tensors that it takes. */
function run(session, tensors) {
  return session.run(Object.fromEntries(session.inputNames.map((name) => [name, tensors[name]])));
}

if (process.argv.length !== 7) {
  console.error('usage: node onnxruntime_web.mjs FOLDER SUPPORT.ppm MASK.pgm QUERY.ppm RESULT.pgm');
  process.exit(2);
}
const [folder, photograph, annotation, asked, result] = process.argv.slice(2);
const { threshold } = JSON.parse(readFileSync(join(folder, 'export.json'), 'utf8'));
const image = readNetpbm(photograph, 3);
const mask = readNetpbm(annotation, 1);
const query = readNetpbm(asked, 3);
if (image.height !== mask.height || image.width !== mask.width) {
  throw new Error(`${annotation} has another size than ${photograph}`);
}

const { height, width } = image;
const shown = await run(await load(folder, 'support'), {
  image: new ort.Tensor('uint8', image.pixels, [1, height, width, 3]),
  mask: new ort.Tensor('uint8', mask.pixels, [1, height, width]),
  sizes: new ort.Tensor('int64', [height, width], [1, 2]),
  places: new ort.Tensor('float32', [0, 0, 1], [1, 3]), // photograph 0, from left to right
});
const inputs = { image: new ort.Tensor('uint8', query.pixels, [query.height, query.width, 3]) };
for (const [name, { data, dims }] of Object.entries(shown)) {
  inputs[name] = new ort.Tensor('float32', data, [1, ...dims]); // one class
}
const { probability, score } = await run(await load(folder, 'query'), inputs);

const found = score.data[0] >= 0.1;
const pixels = Uint8Array.from(probability.data, (p) => (found && p >= threshold ? 255 : 0));
const [, rows, columns] = probability.dims;
writeFileSync(result, Buffer.concat([Buffer.from(`P5\n${columns} ${rows}\n255\n`), pixels]));
console.log(`score ${score.data[0].toPrecision(3)}${found ? '' : ', not found'}`);
