// Token ids and greedy continuations of a GGUF file by llama.cpp.
// usage: node llama.mjs FILE REQUEST RESULT; the request is {"lines": [text], "prompts": [[id]], "tokens": number}
import { readFileSync, writeFileSync } from "node:fs";
import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const { lines, prompts, tokens } = JSON.parse(readFileSync(process.argv[3], "utf8"));
const llama = await getLlama({ build: "never", gpu: false, maxThreads: 1, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: process.argv[2] });
const ids = lines.map((line) => model.tokenize(line, false));
const continuations = [];
for (const prompt of prompts) {
  const context = await model.createContext({ contextSize: 128, threads: 1 });
  const continuation = [];
  for await (const token of context.getSequence().evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    continuation.push(token);
    if (continuation.length === tokens) break;
  }
  continuations.push(continuation);
  await context.dispose();
}
const { metadata } = model.fileInfo;
writeFileSync(process.argv[4], JSON.stringify({ ids, continuations, name: metadata.general.name }));
process.exit(0);
