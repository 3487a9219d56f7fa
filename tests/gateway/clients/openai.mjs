// What OpenAI's JavaScript client makes of a gateway: node openai.mjs URL KEY. Prints one JSON object, a result a name.

import OpenAI from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const ask = (content) => ({ model: "thinker", messages: [{ role: "user", content }] });
const parameters = { type: "object", properties: { city: { type: "string" } } };
const weather = { type: "function", function: { name: "weather", description: "The weather.", parameters } };

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return { class: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  return null;
}

const scenarios = {
  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return names;
  },

  async chat() {
    const { choices, usage } = await client.chat.completions.create(ask("Hi"));
    return { content: choices[0].message.content, finish: choices[0].finish_reason, usage };
  },

  async chatStream() {
    const request = { ...ask("Hi"), stream: true, stream_options: { include_usage: true } };
    let content = "", finish = null, usage = null;
    for await (const chunk of await client.chat.completions.create(request)) {
      content += chunk.choices[0]?.delta.content ?? "";
      finish = chunk.choices[0]?.finish_reason ?? finish;
      usage = chunk.usage ?? usage;
    }
    return { content, finish, usage };
  },

  async streamHelper() {
    const { choices } = await client.chat.completions.stream(ask("Hi")).finalChatCompletion();
    return { content: choices[0].message.content, finish: choices[0].finish_reason };
  },

  async tools() {
    const { choices } = await client.chat.completions.create({ ...ask("call"), tools: [weather] });
    const [call] = choices[0].message.tool_calls;
    return { name: call.function.name, arguments: JSON.parse(call.function.arguments), finish: choices[0].finish_reason };
  },

  async runTools() {
    const cities = [];
    const tool = {
      type: "function",
      function: {
        name: "weather",
        parameters,
        parse: JSON.parse,
        function: ({ city }) => (cities.push(city), "Sunny."),
      },
    };
    const runner = client.chat.completions.runTools({ ...ask("call"), stream: true, tools: [tool] });
    return { content: await runner.finalContent(), cities };
  },

  async parsed() {
    const schema = { type: "object", properties: { city: { type: "string" } } };
    const format = { type: "json_schema", json_schema: { name: "place", schema } };
    const { choices } = await client.chat.completions.create({ ...ask("json"), response_format: format });
    return JSON.parse(choices[0].message.content);
  },

  async completion() {
    const { choices } = await client.completions.create({ model: "thinker", prompt: "Hi", max_tokens: 50 });
    return { text: choices[0].text, finish: choices[0].finish_reason };
  },

  async response() {
    const response = await client.responses.create({ model: "thinker", input: "Hi", store: false });
    return { text: response.output_text, status: response.status, types: response.output.map((item) => item.type) };
  },

  async responseStream() {
    let text = "", last = null;
    const kinds = new Set();
    for await (const event of await client.responses.create({ model: "thinker", input: "Hi", stream: true })) {
      kinds.add(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    return { text, kinds: [...kinds], final: last.response.output_text ?? last.response.output.at(-1).content[0].text };
  },

  async errors() {
    const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-no", maxRetries: 0 });
    return {
      key: await failure(stranger.chat.completions.create(ask("Hi"))),
      model: await failure(client.chat.completions.create({ ...ask("Hi"), model: "other" })),
      field: await failure(client.chat.completions.create({ ...ask("Hi"), logit_bias: { 1: 1 } })),
      busy: await failure(client.chat.completions.create(ask("busy"))),
      garbled: await failure(client.chat.completions.create(ask("garbled"))),
      busyStream: await failure(client.chat.completions.create({ ...ask("busy"), stream: true })),
      middle: await failure(client.chat.completions.stream(ask("middle")).finalChatCompletion()),
    };
  },

  async abort() {
    const stream = await client.chat.completions.create({ ...ask("slow"), stream: true });
    let chunks = 0;
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content && ++chunks === 3) stream.controller.abort();
    }
    return { chunks, aborted: stream.controller.signal.aborted };
  },
};

const results = {};
for (const [name, run] of Object.entries(scenarios)) {
  results[name] = await run().catch((error) => ({ failed: `${error.constructor.name}: ${error.message}` }));
}
console.log(JSON.stringify(results));
