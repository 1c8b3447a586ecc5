"""A client of the hub, in a process of its own since huggingface_hub reads its settings at import."""

import os
import sys
from multiprocessing.connection import Connection

from processes import CONTEXT, start

from data import hub
from data.tokenization import load_tokenizer
from nn.checkpoint import load_pretrained

SECONDS = 120  # until a client is given up


def load(name: str) -> str:
    """Loads a model and its tokenizer. Returns the sum of all weights and the number of tokens."""
    model, tokenizer = load_pretrained(name), load_tokenizer(name)
    return f"sum {sum(p.double().sum().item() for p in model.parameters())} {tokenizer.vocab_size}"


def answer(function: str, name: str) -> str:
    """Calls `load`, or a function of data/hub.py, with a hub id. Returns its value or its error as text."""
    try:
        return str((load if function == "load" else getattr(hub, function))(name))
    except (ValueError, OSError) as error:
        return f"error {error}"


def client(connection: Connection, settings: dict[str, str], questions: tuple[tuple[str, str], ...]) -> None:
    """Sends the answer to each question, a function and a name, with `settings` as environment."""
    assert "huggingface_hub" not in sys.modules
    os.environ.clear()
    os.environ.update(settings)
    connection.send([answer(*question) for question in questions])


def answers(*questions: tuple[str, str], settings: dict[str, str]) -> list[str]:
    """Returns what a new process answers to each question. Raises EOFError if it dies."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=client, args=(sender, settings, questions))
    start(process)
    sender.close()
    assert receiver.poll(SECONDS), "the client does not answer"
    lines = receiver.recv()
    process.join()
    return lines
