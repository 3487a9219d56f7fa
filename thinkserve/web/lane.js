/** One response as it comes: the time of the thought, the text, the counts, and what can be done with it. */

import { asCurl } from "./completion.js";
import { Prose } from "./prose.js";
import { explainEnd, explainError, seconds, tokens } from "./words.js";

/** @returns {HTMLElement} an element with a class, and texts or elements in it */
export function make(name, className, ...content) {
  const element = document.createElement(name);
  element.className = className;
  element.append(...content);
  return element;
}

function button(text, act) {
  const made = make("button", "quiet", text);
  made.type = "button";
  made.addEventListener("click", () => act(made));
  return made;
}

export class Lane {
  /**
   * @param {string} title "" where it is the only one
   * @param {() => void} retry asks for it again
   */
  constructor(title, retry) {
    Object.assign(this, { title, retry });
    this.element = make("article", "lane");
    this.element.tabIndex = -1; // takes the focus of the retry button, which goes away
    this.element.setAttribute("aria-label", title || "Response");
  }

  /** Begin to wait for the response to a request. */
  begin(body, access) {
    Object.assign(this, { body, access, text: "", calls: [], finish: undefined, lost: undefined, usage: undefined });
    this.said = ""; // what went wrong or ended early
    this.started = performance.now();
    this.waited = null; // milliseconds until the response began
    this.label = make("span", "");
    this.pace = make("div", "pace", make("span", "dot"), this.label);
    this.thought = null;
    this.content = make("div", "prose");
    this.prose = new Prose(this.content);
    this.json = null;
    this.element.replaceChildren(...(this.title ? [make("h3", "", this.title)] : []), this.pace, this.content);
    this.element.setAttribute("aria-busy", "true");
    this.clock = setInterval(() => this.#tell(), 100);
    this.#tell();
  }

  /** @param {import("./completion.js").Part} part */
  take({ text, thought, calls, finish, lost, usage }) {
    if (thought) this.#reveal(thought);
    if (text || calls) this.#respond();
    if (text) {
      this.text += text;
      this.prose.feed(text);
    }
    for (const call of calls ?? []) this.#call(call);
    this.finish = finish ?? this.finish;
    this.lost = lost ?? this.lost;
    this.usage = usage ?? this.usage;
  }

  /** The response is whole. */
  end() {
    this.#close();
    const { finish, lost, body } = this;
    const message = explainEnd({ finish, lost, empty: !this.text && !this.calls.length, limited: !!body.max_tokens });
    if (message) this.#note("note", { message });
    this.#foot();
  }

  /** The user stopped it; what came stays. */
  stop() {
    this.#close();
    this.#note("note", { message: this.text ? "Stopped here." : "Stopped before a response began.", retry: true });
    this.#foot();
  }

  /** @param {import("./completion.js").ServerError} error */
  fail(error) {
    this.#close();
    if (error.status !== null) this.pace.remove(); // refused: nothing has thought
    this.#note("note error", { ...explainError(error), retry: true });
    this.#foot();
  }

  /** All of it, for a screen reader to tell once. */
  get spoken() {
    return [this.title, this.text, this.said].filter(Boolean).join("\n");
  }

  #respond() {
    this.waited ??= performance.now() - this.started;
    clearInterval(this.clock);
    this.pace.classList.add("over");
    this.#tell();
  }

  #close() {
    this.#respond();
    this.prose.flush();
    this.element.setAttribute("aria-busy", "false");
  }

  /** The line above the response. */
  #tell() {
    const direct = this.body.reasoning_effort === "none";
    const thought = this.usage?.completion_tokens_details?.reasoning_tokens;
    const time = seconds(this.waited ?? performance.now() - this.started);
    if (this.waited === null) this.label.textContent = direct ? `waiting ${time}` : `thinking ${time}`;
    else if (thought ?? !direct) this.label.textContent = `thought for ${time}${thought ? ` · ${tokens(thought)}` : ""}`;
    else this.label.textContent = `no thought${this.text ? ` · first word after ${time}` : ""}`;
  }

  #reveal(text) {
    if (!this.thought) {
      this.thought = make("div", "thought");
      const folded = make("details", "", make("summary", ""), this.thought);
      this.pace.replaceWith(folded);
      folded.firstChild.append(this.pace);
    }
    this.thought.append(text);
  }

  #call({ index = 0, id, function: { name, arguments: more = "" } = {} }) {
    const call = (this.calls[index] ??= { id, name: "", arguments: "" });
    call.name += name ?? "";
    call.arguments += more;
    if (!this.json) {
      this.json = make("code", "");
      this.content.after(make("pre", "calls", this.json));
    }
    const shown = this.calls.map((made) => ({ ...made, arguments: parsed(made.arguments) }));
    this.json.textContent = shown.map((made) => JSON.stringify(made, null, 2)).join("\n");
  }

  #note(className, { title = "", message, remedy = "", retry = false }) {
    const note = make("div", className);
    if (title) note.append(make("strong", "", title));
    note.append(make("p", "", message));
    if (remedy) note.append(make("p", "", remedy));
    if (retry) note.append(button("Try again", () => (this.element.focus(), this.retry())));
    this.element.append(note);
    this.said = [title, message, remedy].filter(Boolean).join(". ");
  }

  #foot() {
    const foot = make("footer", "");
    if (this.usage) {
      const count = this.usage.completion_tokens - (this.usage.completion_tokens_details?.reasoning_tokens ?? 0);
      foot.append(make("span", "", `response · ${tokens(count)}`));
    }
    if (this.text) foot.append(button("Copy", (pressed) => copy(this.text, pressed)));
    foot.append(button("Copy as curl", (pressed) => copy(asCurl(this.body, this.access), pressed)));
    this.element.append(foot);
  }
}

/** Arguments as the object they are, or as text while they are not whole. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Copy a text, and say so on the button that was pressed. */
async function copy(text, pressed) {
  const label = pressed.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP there is no clipboard, other than of what is selected.
    const field = make("textarea", "unseen");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    pressed.focus();
  }
  pressed.textContent = "Copied";
  setTimeout(() => (pressed.textContent = label), 1500);
}
