// OpenAI's Node client against a running fleet with the models `sample` and `echo`; prints what it saw as JSON.
// usage: node openai_sdk.mjs http://127.0.0.1:8000
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const question = "Solve for x: 4x - 2 = 10";
const messages = [{ role: "user", content: question }];
const greedy = { model: "sample", max_tokens: 100, temperature: 0 };

async function refusal(request) {
  try {
    await request;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  throw new Error("expected a refusal");
}

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const completion = await client.completions.create({ ...greedy, prompt: question, logprobs: 1, n: 2 });
const chat = await client.chat.completions.create({ ...greedy, messages });

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  ...greedy,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}

const embeddings = await client.embeddings.create({ model: "sample", input: ["two", "four"] });

let left;
const endless = { model: "sample", prompt: "Once", max_tokens: 400, ignore_eos: true };
const long = await client.completions.create({ ...endless, stream: true });
for await (const chunk of long) {
  left = chunk.id;
  if (chunk.choices[0].text) break; // which closes the stream
}

console.log(
  JSON.stringify({
    models,
    texts: completion.choices.map((choice) => choice.text),
    num_logprobs: completion.choices[0].logprobs.token_logprobs.length,
    completion_tokens: completion.usage.completion_tokens,
    chat: chat.choices[0].message,
    streamed,
    usage,
    same_usage: JSON.stringify(usage) === JSON.stringify(chat.usage),
    dimensions: embeddings.data.map((item) => item.embedding.length),
    left,
    wrong: await refusal(client.completions.create({ model: "sample", prompt: "a", n: 99 })),
    unknown: await refusal(client.chat.completions.create({ model: "nobody", messages })),
  }),
);
