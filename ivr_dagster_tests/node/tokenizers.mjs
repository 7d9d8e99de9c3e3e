// Token ids of texts by @huggingface/tokenizers.
// usage: node tokenizers.mjs FOLDER REQUEST RESULT; the request is {"lines": [text]}
import { readFileSync, writeFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";

const { lines } = JSON.parse(readFileSync(process.argv[3], "utf8"));
const [tokenizer, config] = ["tokenizer.json", "tokenizer_config.json"].map((name) =>
  JSON.parse(readFileSync(`${process.argv[2]}/${name}`, "utf8")),
);
const loaded = new Tokenizer(tokenizer, config);
const ids = lines.map((line) => loaded.encode(line, { add_special_tokens: false }).ids);
writeFileSync(process.argv[4], JSON.stringify({ ids }));
