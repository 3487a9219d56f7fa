/** What the page asks of the gateway. Addresses are relative, so that a prefix before them does no harm. */

import { readEvents } from "./events.js";

/**
 * @typedef {{text?: string, thought?: string, calls?: object[], finish?: string, lost?: string, usage?: object}} Part
 * @typedef {{key: string, reveal?: boolean, signal?: AbortSignal}} Access
 */

/** The server refused or failed; `status` is 0 where there was no answer, null where a stream broke off. */
export class ServerError extends Error {
  /** @param {{status: number | null, code?: string, wait?: number | null}} what `wait`: Retry-After in seconds */
  constructor(message, { status, code = "", wait = null }) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

/** @param {Access} access */
export function headersFor({ key, reveal }) {
  return { ...(key && { Authorization: `Bearer ${key}` }), ...(reveal && { "thinkserve-reveal": "1" }) };
}

/** @param {Access} access */
export async function listModels(access) {
  const { data } = await (await ask("v1/models", {}, access)).json();
  return data.map((model) => model.id);
}

/**
 * Stream a chat completion.
 * @param {object} body
 * @param {Access} access
 * @returns {AsyncGenerator<Part>}
 */
export async function* complete(body, access) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body) }, access);
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const { error, usage, choices } = JSON.parse(data);
      if (error) throw new ServerError(error.message, { status: null, code: error.code });
      if (usage) yield { usage };
      for (const { delta = {}, finish_reason: finish, incomplete_details: incomplete } of choices ?? []) {
        const { content: text, reasoning_content: thought, tool_calls: calls } = delta;
        yield { text, thought, calls, finish, lost: incomplete?.reason };
      }
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError(`The stream could not be read to its end (${error.message}).`, { status: null });
  }
  throw new ServerError("The connection ended before the response was complete.", { status: null });
}

async function ask(path, options, access) {
  let response;
  try {
    const headers = { ...options.headers, ...headersFor(access) };
    response = await fetch(path, { ...options, headers, signal: access.signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(`The request did not get through (${error.message}).`, { status: 0 });
  }
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error ?? {};
  const { status, statusText, headers } = response;
  const wait = Number(headers.get("Retry-After")) || null; // a date, which it may be too, is not told
  throw new ServerError(error.message ?? statusText, { status, code: error.code, wait });
}

/** The same request as a command line; the key is left to a variable, so that it can be shown around. */
export function asCurl(body, access) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const headers = Object.entries(headersFor(access)).map(([name, value]) =>
    name === "Authorization" ? `-H "Authorization: Bearer $API_KEY"` : `-H ${quoted(`${name}: ${value}`)}`,
  );
  const address = new URL("v1/chat/completions", document.baseURI).href;
  return [`curl -N ${quoted(address)}`, `-H 'Content-Type: application/json'`, ...headers]
    .concat(`-d ${quoted(JSON.stringify(body))}`)
    .join(" \\\n  ");
}
