"""A small OpenAI-compatible server on top of Hugging Face transformers: the engine where vLLM is not installed.

It runs as its own process (`python -m thinkserve.engines.transformers_server`), behind the gateway, on a private
Unix socket, and speaks the part of vLLM's dialect that the gateway uses. The path of a request:

    serve.py         the life of the process: load, listen, drain on SIGTERM, end
    app.py           HTTP: routes, streams, errors, shutdown                          } the event loop
    request.py       the JSON body, checked, as a frozen dataclass                    }
    prompt.py        chat template and tokenizer: messages -> token ids, ids -> text  }
    wire.py          the JSON of replies, chunks and errors                           }
    generation.py    the bridge: deltas from the decode thread, merged for a slow reader
    worker.py        the decode thread: inbox, one batch step after the other         } the decode thread
    batch.py         continuous batching: sequences join and leave at every step      }
    sequence.py      one running choice: its tokens, its text, why it stops           }
    detokenizer.py   tokens -> text without half characters; stop strings             }
    sampling.py      logits -> tokens, for the whole batch at once                    }
    decoder.py       the model: loading, masks, one forward pass                      }
    cache.py         keys and values: one row per sequence, left-aligned              }

Supported: decoder-only models with standard attention caches (Llama, Qwen, Mistral, Gemma, ...), sliding windows
included. Not supported, and refused at the start by a self-check: recurrent and linear-attention models (Mamba, ...),
models with their own cache class, encoder-decoders; and not offered at all: images, tools, structured output, LoRA,
prefix caching, rotary embeddings that depend on the longest sequence of the batch (dynamic NTK, longrope).
"""
