"""The playground: one static page that talks to the gateway which serves it. `thinkserve.gateway.playground` serves it.

`index.html` and `playground.css` are the page; the scripts are ES modules without a build step:
`playground.js` (the controls, the conversation) -> `lane.js` (one response as it comes) -> `prose.js` (its text),
and `playground.js` -> `completion.js` (one streamed request) -> `events.js` (server-sent events); `words.js` has the
sentences for what went wrong or ended early.

What a model wrote is put on the page as text nodes only, never as markup.
"""
