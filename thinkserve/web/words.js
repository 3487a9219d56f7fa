/** The sentences of the page: times, counts, and what went wrong or ended early. */

/** @param {number} milliseconds */
export const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

/** @param {number} count */
export const tokens = (count) => `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}`;

const LOST = {
  max_thought_tokens:
    "The thought used up its tokens before a response began. More effort gives it more room; “none” does without one.",
  max_completion_tokens: "The thought used up all tokens of this request, so there is no response.",
  context_length: "The thought filled the model’s context, so there is no response. A shorter or new chat leaves more room.",
};

/**
 * Why a response ended, where that needs a word.
 * @param {{finish?: string, lost?: string, empty: boolean, limited: boolean}} end `limited`: max_tokens was set
 */
export function explainEnd({ finish, lost, empty, limited }) {
  if (lost) return LOST[lost] ?? `The thought was not finished (${lost}), so there is no response.`;
  if (finish === "length")
    return limited
      ? "Cut off: the response reached “Max tokens”."
      : "Cut off: the response reached the end of the model’s context.";
  if (finish === "content_filter") return "Ended by a content filter.";
  if (finish === "stop" && empty) return "The response is empty.";
  return ["stop", "tool_calls"].includes(finish) ? "" : `Ended early (${finish ?? "no reason given"}).`;
}

const TITLES = { 401: "A key is needed", 403: "Not allowed", 429: "Too many requests", 503: "Not available right now" };
const REMEDIES = {
  invalid_api_key: "The key goes into the field “API key”.",
  operator_key_required: "Give an operator’s key as “API key”, or turn “Reveal thoughts” off.",
};

/**
 * @param {import("./completion.js").ServerError} error
 * @returns {{title: string, message: string, remedy: string}}
 */
export function explainError({ status, message, code, wait }) {
  const known = TITLES[status] ?? (status >= 500 ? "The server failed" : "Refused");
  const title = status === null ? "The response broke off" : status ? `${known} (${status})` : "No connection";
  const remedy = wait ? `The server asks to wait ${wait} s before the next try.` : (REMEDIES[code] ?? "");
  return { title, message: message || "The server gave no reason.", remedy };
}
