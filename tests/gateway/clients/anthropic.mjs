// What Anthropic's JavaScript client makes of a gateway: node anthropic.mjs URL KEY. Prints one JSON object, a result a name.

import Anthropic from "@anthropic-ai/sdk";

const [url, key] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const ask = (content) => ({ model: "thinker", max_tokens: 2000, messages: [{ role: "user", content }] });
const input_schema = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ name: "weather", description: "The weather.", input_schema }];

function told({ content, stop_reason, stop_sequence, usage }) {
  const blocks = content.map(({ id, ...block }) => block);
  return { content: blocks, stop_reason, stop_sequence, output_tokens: usage.output_tokens };
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { class: error.constructor.name, status: error.status, type: error.error?.error?.type };
  }
  return null;
}

const scenarios = {
  async message() {
    return told(await client.messages.create(ask("Hi")));
  },

  async stream() {
    let text = "";
    const stream = client.messages.stream(ask("Hi")).on("text", (delta) => (text += delta));
    return { ...told(await stream.finalMessage()), text };
  },

  async stopped() {
    return told(await client.messages.create({ ...ask("Hi"), stop_sequences: ["world"] }));
  },

  async tools() {
    const first = await client.messages.stream({ ...ask("call"), tools }).finalMessage();
    const call = first.content.find((block) => block.type === "tool_use");
    const results = [{ type: "tool_result", tool_use_id: call.id, content: "Sunny." }];
    const messages = [
      ...ask("call").messages,
      { role: "assistant", content: first.content },
      { role: "user", content: [...results, { type: "text", text: "Go on." }] },
    ];
    return [told(first), told(await client.messages.create({ ...ask("call"), tools, messages }))];
  },

  async errors() {
    const stranger = new Anthropic({ baseURL: url, apiKey: "sk-no", maxRetries: 0 });
    return {
      key: await failure(stranger.messages.create(ask("Hi"))),
      model: await failure(client.messages.create({ ...ask("Hi"), model: "other" })),
      field: await failure(client.messages.create({ ...ask("Hi"), container: "c" })),
      busy: await failure(client.messages.create(ask("busy"))),
      garbled: await failure(client.messages.create(ask("garbled"))),
      middle: await failure(client.messages.stream(ask("middle")).finalMessage()),
    };
  },

  async abort() {
    const stream = client.messages.stream(ask("slow"));
    let chunks = 0;
    stream.on("text", () => ++chunks === 3 && stream.abort());
    return { ...(await failure(stream.finalMessage())), chunks };
  },
};

const results = {};
for (const [name, run] of Object.entries(scenarios)) {
  results[name] = await run().catch((error) => ({ failed: `${error.constructor.name}: ${error.message}` }));
}
console.log(JSON.stringify(results));
