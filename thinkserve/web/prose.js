/** Text of a model on the page: paragraphs and fenced code, made of text nodes only. */

const FENCE = "```";
const OPENING = /^(`{3,})[^`]*$/;

/** Takes text in pieces of any size and shows it at once; only a line that may be a fence waits for its end. */
export class Prose {
  #root;
  #line = ""; // the last line as far as it came
  #shown = 0; // how much of it is on the page
  #fence = ""; // what opened the code block that it is in
  #blank = true; // what comes next begins a block
  #text = new Text();

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  /** @param {string} text */
  feed(text) {
    const lines = text.split("\n");
    lines.forEach((part, at) => {
      this.#line += part;
      if (at < lines.length - 1) this.#endLine();
      else if (!this.#mayBeFence()) this.#show(this.#line);
    });
  }

  /** Show what still waits: no more comes. */
  flush() {
    if (!this.#closes()) this.#show(this.#line);
  }

  #mayBeFence() {
    return this.#shown === 0 && FENCE.startsWith(this.#line.trimStart().slice(0, FENCE.length));
  }

  /** Whether the line closes the code block: it is as many backticks as opened it, or more. */
  #closes() {
    const line = this.#line.trim();
    return this.#fence !== "" && line.startsWith(this.#fence) && !line.replaceAll("`", "");
  }

  #endLine() {
    const opening = this.#fence ? null : OPENING.exec(this.#line.trim());
    if (opening || this.#closes()) {
      this.#fence = opening?.[1] ?? "";
      this.#blank = true;
    } else if (!this.#fence && this.#line.trim() === "") {
      this.#blank = true;
    } else {
      this.#show(this.#line + "\n");
    }
    this.#line = "";
    this.#shown = 0;
  }

  /** @param {string} line the last line, some of which may be there */
  #show(line) {
    const more = line.slice(this.#shown);
    if (!more) return;
    if (this.#blank) this.#open();
    this.#text.appendData(more);
    this.#shown = line.length;
  }

  #open() {
    this.#text = new Text();
    this.#blank = false;
    const block = document.createElement(this.#fence ? "pre" : "p");
    block.dir = "auto";
    const inner = this.#fence ? block.appendChild(document.createElement("code")) : block;
    inner.append(this.#text);
    this.#root.append(block);
  }
}
