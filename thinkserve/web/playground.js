/** The page: its controls, the conversation, and the requests that run. */

import { complete, listModels, ServerError } from "./completion.js";
import { Lane, make } from "./lane.js";
import { explainError } from "./words.js";

const SAMPLING = ["temperature", "top_p", "max_tokens", "seed"];
const KEY = "thinkserve-key";
const [WITH, WITHOUT] = ["With a thought", "Without"];
const find = (id) => document.getElementById(id);
const [log, message, send, settings, toggle, key, model] =
  ["log", "message", "send", "settings", "toggle", "key", "model"].map(find);

/** @type {{text: string, lanes: Lane[]}[]} */
const turns = [];
/** @type {Set<AbortController>} */
const running = new Set();

// The view follows the text only while it is at its end.
let following = true;
let lastTop = 0;
log.addEventListener("scroll", () => {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 4;
  following = atEnd || (following && log.scrollTop >= lastTop);
  lastTop = log.scrollTop;
});
function follow() {
  requestAnimationFrame(() => {
    if (following) log.scrollTo(0, log.scrollHeight);
    lastTop = log.scrollTop;
  });
}

/** The messages before a turn as one of its lanes knows them: its own responses, or what the other had to say. */
function historyOf(turn, lane) {
  const messages = [];
  for (const past of turns.slice(0, turns.indexOf(turn))) {
    const own = past.lanes.find(({ title }) => title === lane.title);
    const content = own?.text || past.lanes.find(({ text }) => text)?.text;
    if (content) messages.push({ role: "user", content: past.text }, { role: "assistant", content });
  }
  return [...messages, { role: "user", content: turn.text }];
}

function bodyOf(turn, lane) {
  const chosen = find("effort").value;
  const effort = { [WITH]: chosen === "none" ? "" : chosen, [WITHOUT]: "none" }[lane.title] ?? chosen;
  const body = { messages: historyOf(turn, lane), stream: true, stream_options: { include_usage: true } };
  if (model.value) body.model = model.value;
  if (effort) body.reasoning_effort = effort;
  for (const name of SAMPLING) if (find(name).value) body[name] = find(name).valueAsNumber;
  return body;
}

async function run(turn, lane) {
  const controller = new AbortController();
  const access = { key: key.value.trim(), reveal: find("reveal").checked, signal: controller.signal };
  const body = bodyOf(turn, lane);
  running.add(controller);
  refresh();
  lane.begin(body, access);
  follow();
  try {
    for await (const part of complete(body, access)) {
      lane.take(part);
      follow();
    }
    lane.end();
  } catch (error) {
    if (controller.signal.aborted) lane.stop();
    else if (error instanceof ServerError) lane.fail(error);
    else throw error;
  } finally {
    running.delete(controller);
    refresh();
    follow();
    if (lane.element.isConnected) announce(lane.spoken);
  }
}

function announce(text) {
  find("status").textContent = text;
}

function refresh() {
  send.textContent = running.size ? "Stop" : "Send";
  send.classList.toggle("stop", running.size > 0);
}

function stop() {
  for (const controller of running) controller.abort();
}

function submit() {
  const text = message.value.trim();
  if (!text) return message.focus();
  if (!settings.checkValidity()) {
    openSettings(true);
    return settings.reportValidity();
  }
  openSettings(false);
  const turn = { text, lanes: [] };
  const titles = find("compare").checked ? [WITH, WITHOUT] : [""];
  turn.lanes = titles.map((title) => {
    const lane = new Lane(title, () => run(turn, lane));
    return lane;
  });
  turns.push(turn);
  const asked = make("p", "asked", text);
  asked.dir = "auto";
  const lanes = make("div", "lanes", ...turn.lanes.map(({ element }) => element));
  find("welcome")?.remove();
  log.append(make("section", titles.length > 1 ? "turn two" : "turn", asked, lanes));
  message.value = "";
  if (matchMedia("(pointer: coarse)").matches) message.blur(); // the keyboard would cover the response
  following = true;
  announce("Waiting for the response");
  for (const lane of turn.lanes) run(turn, lane);
}

function openSettings(open) {
  toggle.setAttribute("aria-expanded", String(open));
  toggle.textContent = open ? "Close" : "Settings";
  settings.classList.toggle("open", open);
}

let loads = 0;
async function loadModels() {
  const load = (loads += 1);
  const hint = find("model-hint");
  try {
    const names = await listModels({ key: key.value.trim() });
    if (load !== loads) return; // the key has changed meanwhile
    const chosen = model.value;
    model.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
    hint.textContent = "";
  } catch (error) {
    if (load !== loads) return;
    model.replaceChildren();
    const { title, remedy } = explainError(error);
    hint.textContent = [`${title}.`, remedy].filter(Boolean).join(" ");
  }
}

const welcome = find("welcome");
find("new-chat").addEventListener("click", () => {
  turns.length = 0;
  log.replaceChildren(welcome);
  stop();
  message.focus();
});
toggle.addEventListener("click", () => openSettings(!settings.classList.contains("open")));
find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running.size) stop();
  else submit();
});
message.addEventListener("keydown", (event) => {
  // While an input method composes, Enter is its own.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running.size) submit();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && !event.isComposing && stop());

key.addEventListener("change", () => {
  loadModels();
  sessionStorage.setItem(KEY, key.value.trim());
});
try {
  key.value = sessionStorage.getItem(KEY) ?? "";
} catch {
  // The browser denies storage: the key lasts as long as the page.
}
loadModels();
if (!matchMedia("(pointer: coarse)").matches) message.focus();
